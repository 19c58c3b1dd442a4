#!/usr/bin/env bash
# The tests of the kernels on a card: everything device.h wraps against the emulator, then every kernel against its reference.
#   card.sh [--speed] [FOLDER]    runs the programs in FOLDER; else those beside this script; else builds them first
#   card.sh --build FOLDER        builds them, and this script beside them: FOLDER/card.sh is for a machine without a compiler
# The card is what ONLAY_TEST_CARD names (cuda:0), the driver libcuda.so.1 or what ONLAY_CUDA_LIBRARY names. --speed: a table
# of how fast they are, too. Exit code 1 if anything failed.
set -euo pipefail
self="$(cd "$(dirname "$0")" && pwd)"
speed=
if [ "${1:-}" = --build ]; then
  mkdir -p "${2:?card.sh --build FOLDER}"
  out="$(cd "$2" && pwd)"
  . "$self/programs.sh"
  programs
  exit
fi
if [ "${1:-}" = --speed ]; then speed=1; shift; fi
case "${1:-}" in -*) sed -n '2,/^set/s/^# *//p' "$0" >&2; exit 2 ;; esac
folder="${1:-$self}"
if [ -z "${1:-}" ] && [ ! -x "$self/wrappers" ]; then
  folder="$self/../../../target/cuda/card"
  "$0" --build "$folder"
fi
export ONLAY_TEST_CARD="${ONLAY_TEST_CARD:-cuda:0}"
unset ONLAY_EMULATOR_ORDER # what is emulated beside it, in one order
passed=0 failed=0 skipped=0 comparisons=0
printf '%-18s %12s %8s\n' program comparisons failed
for name in wrappers wrappers-turing rows learning attention products products-turing decoders; do
  arguments=()
  if [ "$name" = decoders ]; then arguments=("$folder/decode.txt"); fi
  code=0
  said="$(timeout 900 "$folder/$name" "${arguments[@]}" 2>&1)" || code=$?
  last="${said##*$'\n'}"
  if [ $code = 0 ] && [[ "$last" =~ ": skipped: "(.*)$ ]]; then
    printf '%-18s %12s %8s   skipped: %s\n' "$name" - - "${BASH_REMATCH[1]}"
    skipped=$((skipped + 1))
    continue
  fi
  where=
  if [[ "$last" =~ ^[^,]*(", Turing")?", "(.*)": "([0-9]+)" comparisons, "([0-9]+)" failed"$ ]]; then
    where="${BASH_REMATCH[2]}" did="${BASH_REMATCH[3]}" wrong="${BASH_REMATCH[4]}"
    comparisons=$((comparisons + did))
    printf '%-18s %12s %8s   %s\n' "$name" "$did" "$wrong" "$where"
  else
    printf '%-18s %12s %8s   ended with %s\n' "$name" - - "$code"
  fi
  if [ $code = 0 ] && [ -n "$where" ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    printf '%s\n' "$said" | sed 's/^/  /'
  fi
done
echo "$passed programs passed, $failed failed, $skipped skipped; $comparisons comparisons on $ONLAY_TEST_CARD"
if [ -n "$speed" ]; then "$folder/speed" || failed=$((failed + 1)); fi
[ $failed = 0 ]
