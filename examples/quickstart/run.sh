#!/usr/bin/env bash
# From nothing to a MeSH model that speaks: set-up, corpus, tokenizer, training (stopped and resumed once), export, sample, pictures, table.
# On a laptop CPU it takes under ten minutes after the installation; a GPU is used where there is one. Results: runs/quickstart/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tools/environment.sh

out=runs/quickstart
here=examples/quickstart
export PYTHONUNBUFFERED=1
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 0 ]; then
    site=$here/gpu.yml processes=$((gpus < 2 ? gpus : 2))
else
    site=$here/cpu.yml processes=2
    export DS_ACCELERATOR=cpu
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(python -c 'import os; print(max(len(os.sched_getaffinity(0)) // 2, 1))')}
fi

title() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
launch() { exec deepspeed --log_level warning --num_gpus "$processes" --master_port "$(free_port)" tools/train.py "$here/common.yml" "$site" "$@" 2>&1; }

mkdir -p "$out"
title "Corpus: the Python standard library of $(python --version)"
python $here/build_corpus.py --output $out/corpus.jsonl

title "Tokenizer: sentencepiece, 4096 pieces"
[ -f $out/tokenizer.model ] ||
    python tools/train_tokenizer.py --type sentencepiece --model-type bpe --input $out/corpus.jsonl --vocab-size 4096 --output $out/tokenizer.model

title "Tokens: indexed binaries"
[ -f $out/corpus_text_document.idx ] ||
    python tools/preprocess_data.py --input $out/corpus.jsonl --tokenizer-type SPMTokenizer --vocab-file $out/tokenizer.model \
        --append-eod --workers 2 --output-prefix $out/corpus

title "The model before it is trained (tools/train.py --dry-run)"
python tools/train.py --dry-run --world-size "$processes" $here/common.yml $here/mesh.yml "$site" | sed -n '/^parameters/,/^batch/p'

if [ ! -d $out/mesh ]; then
    title "Training with MeSH on $processes processes; stopped on purpose after the first evaluation"
    launch $here/mesh.yml >$out/first.log &
    training=$!
    tail -n +1 -f --pid=$training $out/first.log &
    until grep -q "validation loss" $out/first.log || ! kill -0 $training 2>/dev/null; do sleep 1; done
    pkill -TERM -P $training || true # deepspeed's per-node launcher passes it on; every process finishes its step and saves
    wait || true
    grep -q "the same command continues" $out/first.log || { echo "training ended before it was to be stopped; see above" >&2; exit 1; }
fi

title "The same command again: training continues from $out/mesh/latest"
(launch $here/mesh.yml)

title "The same budget without a state buffer: recursion_scheme base"
(launch $here/base.yml)

title "Export to Hugging Face; logits are compared before it says done"
[ -d $out/hf ] || python tools/convert_to_hf.py --checkpoint $out/mesh --output $out/hf

title "A sample"
python tools/generate.py --checkpoint $out/mesh --prompt $'import os\n\n\nclass Reader:\n    def __init__(self, path):\n' --max-new-tokens 100 \
    --temperature 0.7 --top-p 0.9 --seed 1

title "Pictures and results"
python tools/plot.py routers --checkpoint $out/mesh --output $out/routers.png
python $here/summarize.py --runs $out --output $out/loss.png
