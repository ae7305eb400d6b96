#!/bin/sh
# Instructions per operation of every micro case, counted by callgrind: the same on a noisy machine as on a quiet one.
#
#   benches/instructions.sh                     prints a table and writes target/instructions.json
#   benches/instructions.sh --against FILE      also compares with an earlier instructions.json; fails if a case grew
#                                               by more than 3 % and more than half an instruction
#   benches/instructions.sh --only TEXT         only cases whose name contains TEXT; writes no file
#
# Needs valgrind and python3. Counts depend on the compiler and its settings: compare like with like.
set -eu
cd "$(dirname "$0")/.."

against="" only=""
while [ $# -gt 0 ]; do
    case "$1" in
        --against) against=$2; shift 2 ;;
        --only) only=$2; shift 2 ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done
[ -z "$against" ] || [ -r "$against" ] || { echo "there is no $against: copy an instructions.json there first" >&2; exit 2; }
command -v valgrind >/dev/null || { echo "valgrind is not installed" >&2; exit 2; }

program=$(cargo bench --no-run --features bench-internals --bench micro --message-format=json-render-diagnostics |
    python3 -c 'import json, sys
built = (json.loads(line) for line in sys.stdin if line.startswith("{"))
print([b["executable"] for b in built if b.get("executable") and b["target"]["name"] == "micro"][-1])')
target=${CARGO_TARGET_DIR:-target}
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT

# A part of the cases is not kept: the file always holds all of them.
out=$target/instructions.json
[ -z "$only" ] || out=/dev/null
rounds=4
tab=$(printf '\t')
"$program" --list-cases | while IFS=$tab read -r operations name; do
    case "$name" in *"$only"*) ;; *) continue ;; esac
    counted=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='micro::counted_round' \
        "$program" --case "$name" --rounds $rounds 2>&1 | sed -n 's/.*Collected : \([0-9]*\).*/\1/p')
    [ -n "$counted" ] || { echo "callgrind counted nothing of: $name" >&2; exit 1; }
    printf '%s\t%s\t%s\n' "$name" $((operations * rounds)) "$counted" | tee -a "$lines" |
        awk -F "$tab" '{ printf "%-40s %10.1f instructions\n", $1, $3 / $2 }'
done

python3 - "$lines" "$out" "$against" <<'PYTHON'
import json, pathlib, sys

lines, out, against = sys.argv[1:]
counts = {}
for line in open(lines):
    name, operations, counted = line.rstrip("\n").split("\t")
    counts[name] = round(int(counted) / int(operations), 2)
before = json.loads(pathlib.Path(against).read_text()) if against else {}
pathlib.Path(out).write_text(json.dumps(counts, indent=1) + "\n")
grown = []
for name, now in counts.items():
    then = before.get(name)
    if then is not None and now > then * 1.03 and now > then + 0.5:
        grown.append(f"{name}: {then} -> {now} instructions ({now / then - 1:+.1%})")
if grown:
    sys.exit("grown since " + against + ":\n  " + "\n  ".join(grown))
PYTHON
