#!/bin/sh
# Writes the King James Bible as plain text: one verse a line, a blank line between chapters.
#
#   scripts/get_text.sh OUT
#
# The text comes from Debian's packages bible-kjv (the reader) and bible-kjv-text (the text). All
# 31,102 verses in order, without their references; the same bytes on every machine. Prints the size.
# SPDX-License-Identifier: Apache-2.0
set -eu

if [ $# -ne 1 ]; then
  echo "get_text.sh: give the file to write: scripts/get_text.sh kjv.txt" >&2
  exit 2
fi
out=$1
reader=$(command -v bible || true)
[ -n "$reader" ] || [ ! -x /usr/bin/bible ] || reader=/usr/bin/bible
if [ -z "$reader" ] || [ ! -r /usr/lib/bible.data ]; then
  echo "get_text.sh: the text's packages are missing; run: apt-get install bible-kjv bible-kjv-text" >&2
  exit 1
fi

temporary="$out.tmp-$$"
trap 'rm -f "$temporary" "$temporary.raw"' EXIT
trap 'exit 1' HUP INT TERM
"$reader" -f Gen1:1-Rev22:21 > "$temporary.raw"
# A line is "Ge1:1 In the beginning ..."; the text up to the colon names the chapter.
LC_ALL=C awk '
  !/^[1-3A-Za-z]+[0-9]+:[0-9]+ / { print "get_text.sh: line " NR " is no verse: " $0 > "/dev/stderr"; bad = 1; exit }
  {
    chapter = $1
    sub(/:.*/, "", chapter)
    if (NR > 1 && chapter != last) print ""
    last = chapter
    sub(/^[^ ]+ +/, "")
    sub(/ +$/, "")
    print
    if (length($0) > 0) verses++
  }
  END {
    if (!bad && verses != 31102) {
      print "get_text.sh: the reader gave " verses " verses instead of 31102; reinstall bible-kjv-text" > "/dev/stderr"
      bad = 1
    }
    exit bad
  }' "$temporary.raw" > "$temporary"
if ! iconv -f UTF-8 -t UTF-8 "$temporary" > /dev/null; then
  echo "get_text.sh: the text is not UTF-8; reinstall bible-kjv-text" >&2
  exit 1
fi
mv "$temporary" "$out"
echo "$(wc -c < "$out") bytes in $out"
