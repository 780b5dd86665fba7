#!/usr/bin/env bash
# Times LLaVA-NeXT-7B, LLaVA-1.5-7B and Qwen2.5-VL-7B on a GPU: of their sizes, with random weights, in bf16, with sdpa and
# FlashAttention-2. Nothing is downloaded; 15 GiB of weights, and at batch 16 some 30 GiB of cache beside them.
#
#   scripts/benchmark_gpu.sh                             # everything
#   MODELS=llava_next_7b ATTENTIONS=sdpa scripts/benchmark_gpu.sh task.rounds=15
#
# Arguments are handed to `tokenreduce` behind those below, and win over them.
set -euo pipefail

read -ra tokenreduce <<<"${TOKENREDUCE:-tokenreduce}"
read -ra models <<<"${MODELS:-llava_next_7b llava_1_5_7b qwen2_5_vl_7b}"
read -ra attentions <<<"${ATTENTIONS:-sdpa flash_attention_2}"
out=${OUT:-outputs/benchmark_gpu}

for model in "${models[@]}"; do
  for attention in "${attentions[@]}"; do
    common=(task=benchmark "model=$model" "attention=$attention" task.weights=random model.dtype=bfloat16 device=cuda)
    # the paper's schedule over batches and counts, and from how many tokens on it pays
    "${tokenreduce[@]}" "${common[@]}" 'task.visual=[576,2880]' 'task.batches=[1,4,16]' task.rounds=11 \
      task.new_tokens=32 'task.break_even=[16,64,256,1024]' "hydra.run.dir=$out/${model}_${attention}" "$@"
    # time and memory against what is kept
    "${tokenreduce[@]}" "${common[@]}" 'task.visual=[576,2880]' 'task.keeps=[0.75,0.6,0.47,0.35]' task.rounds=11 \
      task.break_even=null "hydra.run.dir=$out/${model}_${attention}_shares" "$@"
  done
done
