#!/usr/bin/env bash
# One seed each of cola on SmolLM2 (glot, adapool, cls), sst2 with all rows and imdb at 512 tokens, both on MiniLM with glot.
# Data: GLOT_DATA_DIR names a local mirror. IMDB_DIR, where set, names another one for imdb (the results here: every fifth row of both splits).
set -euo pipefail
cd "$(dirname "$0")/.."
common=(--max_length=128 --epochs=3 --batch_size=32 --eval_batch_size=64 --lr=2e-4 --seed=42 --overwrite=1 --output_dir=runs/single-seed)
glot=(--pooling_method=glot --gat_hidden_dim=256 --num_layers=2 --jk_mode=cat --tau=0.8)
run() { .venv/bin/python main.py "${common[@]}" "$@" > /dev/null; }
run --task=cola --model_name_or_path=smollm2 "${glot[@]}" --run_name=cola-smollm2-glot
run --task=cola --model_name_or_path=smollm2 --pooling_method=adapool --scorer_hidden=128 --run_name=cola-smollm2-adapool
run --task=cola --model_name_or_path=smollm2 --decoder_cls_last_token=1 --pooling_method=cls --run_name=cola-smollm2-cls
run --task=sst2 --num_train_samples=full "${glot[@]}" --run_name=sst2-glot
run --task=imdb "${glot[@]}" --max_length=512 ${IMDB_DIR:+--data_dir="$IMDB_DIR"} --run_name=imdb-glot
