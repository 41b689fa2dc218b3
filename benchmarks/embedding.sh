#!/usr/bin/env bash
# Contrastive training on 6,980 real pairs, and the local MTEB tasks: the figures of results/embedding.md and results/mteb-minilm.md.
# DATA is the mirror that holds msmarco-pairs.jsonl.gz and mteb/; run from the checkout with .venv active.
set -euo pipefail
: "${DATA:?a folder with msmarco-pairs.jsonl.gz and mteb/}"
common="--task=embedding --train_file=$DATA/msmarco-pairs.jsonl.gz --num_train_samples=full --epochs=5 --data_seed=0 --overwrite=1"
for pooler in glot adapool; do
  width=$([ $pooler = adapool ] && echo "--scorer_hidden=256" || echo "--gat_hidden_dim=256 --num_layers=2 --tau=0.6")
  python main.py $common $width --model_name_or_path=minilm --pooling_method=$pooler --lr=2e-4 --batch_size=128 --run_name=pairs-minilm-$pooler
  python main.py $common $width --model_name_or_path=smollm2 --decoder_cls_last_token=1 --num_train_samples=3000 --pooling_method=$pooler --lr=2e-4 \
    --batch_size=128 --run_name=pairs-smollm2-$pooler
  python main.py $common $width --model_name_or_path=smollm2 --num_train_samples=3000 --pooling_method=$pooler --lr=2e-4 --batch_size=128 \
    --contrastive_normalize=1 --run_name=pairs-smollm2-$pooler-unit --save_dir=saved_models/unit
done
python main.py $common --model_name_or_path=minilm --pooling_method=glot --gat_hidden_dim=256 --tau=0.6 --epochs=1 --batch_size=1024 --run_name=pairs-minilm-glot-1024
tasks=AmazonCounterfactualClassification,BIOSSES,EmotionClassification,STS12,STS13,STS14,STS15,STS16,STSBenchmark,SciFact
mteb="--task=mteb --data_dir=$DATA --mteb_task=$tasks --mteb_max_length=256 --overwrite=1"
for pooler in mean cls max; do
  python main.py $mteb --pooling_method=$pooler --run_name=mteb-minilm-$pooler
done
for pooler in glot adapool; do
  python main.py $mteb --pooling_method=$pooler --run_name=mteb-minilm-$pooler-untrained
  python main.py $mteb --checkpoint_path=runs/pairs-minilm-$pooler --run_name=mteb-minilm-$pooler
done
