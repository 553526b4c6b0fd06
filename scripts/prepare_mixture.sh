#!/usr/bin/env bash
# Makes the data of configs/mixture.json under data/mixture: the King James text by chapters, the sources of
# this repository with fill-in-the-middle, and questions about the text as chats.
#   scripts/prepare_mixture.sh [DIR]
# Run it again after an interruption: it goes on where it was.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

dir=${1:-data/mixture}
hadal=${HADAL:-build/release/hadal}
[ -x "$hadal" ] || { echo "prepare_mixture.sh: $hadal is missing; run: make build" >&2; exit 1; }
mkdir -p "$dir"

[ -s "$dir/bible.txt" ] || scripts/get_text.sh "$dir/bible.txt"
# Sources as records of JSONL, and chats that ask for the verse after a verse.
if [ ! -s "$dir/chat.jsonl" ]; then
  git ls-files 'src/*.cc' 'src/*.h' 'scripts/*.sh' 'docs/*.md' | LC_ALL=C sort >"$dir/files"
  python3 - "$dir" <<'EOF_PYTHON'
import json, pathlib, sys
dir = pathlib.Path(sys.argv[1])
with open(dir / "code.jsonl", "w", encoding="utf-8") as out:
    for path in (dir / "files").read_text().split():
        out.write(json.dumps({"text": pathlib.Path(path).read_text(encoding="utf-8")}) + "\n")
verses = [v for v in (dir / "bible.txt").read_text(encoding="utf-8").split("\n") if v]
with open(dir / "chat.jsonl.part", "w", encoding="utf-8") as out:
    for i in range(0, len(verses) - 1, 7):
        out.write(json.dumps({"messages": [{"role": "user", "content": "What comes after: " + verses[i]},
                                           {"role": "assistant", "content": verses[i + 1]}]}) + "\n")
(dir / "chat.jsonl.part").rename(dir / "chat.jsonl")
EOF_PYTHON
fi

# DeepSeek's special tokens: a fullwidth bar and a low block in UTF-8.
bar=$'\xef\xbd\x9c' low=$'\xe2\x96\x81' special=()
for name in begin_of_sentence end_of_sentence User Assistant fim_begin fim_hole fim_end; do
  special+=(--special "<$bar${name//_/$low}$bar>")
done
if [ ! -s "$dir/tokenizer/tokenizer.json" ]; then
  cat "$dir/bible.txt" "$dir/code.jsonl" >"$dir/both.txt"
  "$hadal" tokenizer train --input "$dir/both.txt" --vocab-size 2048 --output "$dir/tokenizer" "${special[@]}"
fi
prepare=("$hadal" data prepare --tokenizer "$dir/tokenizer" --held-out 0.03 --part-megabytes 1 --threads 1)
"${prepare[@]}" "$dir/bible.txt" --documents paragraph --output "$dir/bible" --split-rate 0.1
"${prepare[@]}" "$dir/code.jsonl" --output "$dir/code" --fim-rate 0.5
"${prepare[@]}" "$dir/chat.jsonl" --output "$dir/chat" --chat-template deepseek-v3
