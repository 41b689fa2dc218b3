#!/usr/bin/env bash
# cola, rte, mrpc, stsb with glot, adapool and mean on MiniLM: the release's GLUE line, seeds 0-4. About 13 minutes on 2 cores.
# Data: GLOT_DATA_DIR names a local mirror; without it the hub is used.
set -euo pipefail
cd "$(dirname "$0")/.."
for task in cola rte mrpc stsb; do
  for pooler in glot adapool mean; do
    .venv/bin/python main.py --model_name_or_path=minilm --decoder_cls_last_token=0 --task=$task --max_length=128 --adaptive_length=0 \
      --epochs=3 --batch_size=32 --eval_batch_size=64 --lr=2e-4 --weight_decay=0.0 --verbose=1 --pooling_method=$pooler --gnn_type=gat \
      --scorer_hidden=128 --gat_hidden_dim=256 --num_layers=2 --jk_mode=cat --graph_adj=threshold --tau=0.8 --proj_dim=256 \
      --precompute_hidden_states=1 --override_precompute=0 --finetune_backbone=0 --seeds=0..4 \
      --output_dir=runs/glue-minilm --run_name=$task-$pooler --overwrite=1 > /dev/null
  done
done
