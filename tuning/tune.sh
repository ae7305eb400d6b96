#!/usr/bin/env bash
# Says how this machine stands for aiomsg, raises what is too low, and takes that back.
#
#   bash tune.sh check     compare; changes nothing, needs no rights. Exit code 1 if something is too low
#   bash tune.sh apply     raise the values of sysctl.conf, now and after a restart; needs root
#   bash tune.sh revert    put back what `apply` found; needs root
#
# Values are only ever raised. What was there before is kept in /var/lib/aiomsg/sysctl.saved.
set -euo pipefail
export LC_ALL=C

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
WANTED="${AIOMSG_SYSCTL:-$HERE/sysctl.conf}"
SAVED="${AIOMSG_SAVED:-/var/lib/aiomsg/sysctl.saved}"
INSTALLED="${AIOMSG_INSTALLED:-/etc/sysctl.d/60-aiomsg.conf}"
NOFILE_MIN=65536
MEMLOCK_MIN_KIB=8192

LOW=0
told() { printf '%-4s %-34s %s\n' "$1" "$2" "$3"; }
low() {
    told low "$1" "$2"
    LOW=1
}

# The lines "name = number" of the file.
wanted() { sed -n 's/^\([a-z][a-z0-9_.]*\) *= *\([0-9]*\) *$/\1 \2/p' "$WANTED"; }
now() { sysctl -n "$1" 2>/dev/null; }

check_limit() {
    local name="$1" value="$2" least="$3" how="$4"
    if [[ "$value" == unlimited ]] || ((value >= least)); then
        told ok "$name" "$value"
    else
        low "$name" "$value, $least wanted: $how"
    fi
}

check() {
    local name value is
    while read -r name value; do
        is="$(now "$name")" || true
        if [[ -z "$is" ]]; then
            told skip "$name" "not on this system"
        elif ((is >= value)); then
            told ok "$name" "$is"
        else
            low "$name" "$is, $value wanted: sudo bash tune.sh apply"
        fi
    done < <(wanted)
    check_limit "open files (ulimit -Hn)" "$(ulimit -Hn)" "$NOFILE_MIN" "LimitNOFILE= of the service, or limits.conf"
    check_limit "locked KiB (ulimit -Hl)" "$(ulimit -Hl)" "$MEMLOCK_MIN_KIB" "LimitMEMLOCK= of the service, or limits.conf"
    case "$(now kernel.io_uring_disabled)" in
        0) told ok kernel.io_uring_disabled 0 ;;
        "") told skip kernel.io_uring_disabled "not on this system: before Linux 6.6 nothing but seccomp forbids it" ;;
        *) low kernel.io_uring_disabled "$(now kernel.io_uring_disabled): the readiness backend will be used" ;;
    esac
    return "$LOW"
}

# Adds "name = value" to a file that does not have the name.
keep() {
    grep -qs "^$2 =" "$1" || echo "$2 = $3" >>"$1"
}

apply() {
    local name value is
    if ! install -d "$(dirname "$SAVED")" "$(dirname "$INSTALLED")"; then
        echo "this needs root: sudo bash tune.sh apply" >&2
        exit 1
    fi
    while read -r name value; do
        is="$(now "$name")" || true
        if [[ -n "$is" ]] && ((is < value)); then
            keep "$SAVED" "$name" "$is"
            keep "$INSTALLED" "$name" "$value"
            sysctl -q -w "$name=$value"
            echo "raised $name from $is to $value, also at the next start ($INSTALLED)"
        fi
    done < <(wanted)
    echo "nothing else is too low; 'revert' puts back what was there"
}

revert() {
    if [[ ! -e "$SAVED" ]]; then
        echo "nothing to take back: $SAVED is not there"
        return
    fi
    sysctl -q -p "$SAVED"
    rm -f "$SAVED" "$INSTALLED"
    echo "as it was before"
}

case "${1:-}" in
    check | apply | revert) "$1" ;;
    *)
        sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
