#!/bin/sh
# Installs Flawline on a box from the folder that this file lies in, without any network.
#
#   sudo sh install.sh                 checks every file, installs to /opt/flawline, writes units and examples
#   sh install.sh --prefix DIR         the programs alone, into DIR; no root, no units
#
# Options: --prefix DIR   where the programs go (default /opt/flawline)
#          --root DIR     everything below DIR, to try it: nothing outside is touched, nothing is started
#          --python FILE  the interpreter (default python3)
# Installed again with a newer folder, the old version stays beside the new one; the last lines say how to go back.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
prefix=/opt/flawline
root=
python=python3
system=yes
while [ $# -gt 0 ]; do
    case "$1" in
        --prefix) prefix=$2; system=no; shift 2 ;;
        --root) root=$2; shift 2 ;;
        --python) python=$2; shift 2 ;;
        --help|-h) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "install.sh: unknown option $1; see --help" >&2; exit 2 ;;
    esac
done

fail() { echo "install.sh: $1" >&2; exit 1; }
step() { echo "[$1/5] $2"; }

[ "$system" = no ] || [ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "needs root (sudo), or --prefix DIR for the programs alone"
[ "$system" = no ] || prefix="$root$prefix"

step 1 "checking every file against SHA256SUMS"
(cd "$here" && sha256sum --check --quiet --strict SHA256SUMS) \
    || fail "a file is not as it was made: copy the folder again"
listed=$(wc -l < "$here/SHA256SUMS")
found=$(cd "$here" && find . -type f ! -name SHA256SUMS | wc -l)
[ "$listed" = "$found" ] || fail "$found files here and $listed in SHA256SUMS: copy the folder again"

read -r wanted machine < "$here/made-for"
command -v "$python" >/dev/null || fail "$python is not there; install Python $wanted"
has=$("$python" -c 'import platform, sys; print("%d.%d %s" % (*sys.version_info[:2], platform.machine()))')
[ "$has" = "$wanted $machine" ] || fail "this folder is for Python $wanted on $machine, found $has: make one on such a machine"

version=$(sed -n 's/^flawline\[.*\]==\([^ ]*\) .*/\1/p' "$here/requirements.txt")
mark=$(sha256sum "$here/requirements.txt" | cut -c1-8)
target="$prefix-$version-$mark"

step 2 "installing to $target, from the folder alone"
mkdir -p "$(dirname "$target")"
rm -rf "$target"
"$python" -m venv "$target" || fail "no virtual environment: install the package python3-venv"
"$target/bin/python" -m pip --isolated --disable-pip-version-check install --quiet \
    --no-index --find-links "$here/wheels" --require-hashes -r "$here/requirements.txt"
cp -R "$here/docs" "$target/docs"
"$target/bin/flawline" --version

before=$(readlink "$prefix" 2>/dev/null || true)
[ ! -e "$prefix" ] || [ -L "$prefix" ] || fail "$prefix is a folder of something else; move it away"
ln -s "$(basename "$target")" "$prefix.new-$$"
mv -T "$prefix.new-$$" "$prefix"

if [ "$system" = yes ]; then
    step 3 "user, folders and examples"
    if [ -z "$root" ]; then
        id flawline >/dev/null 2>&1 \
            || useradd --system --user-group --home-dir /var/lib/flawline --shell /usr/sbin/nologin flawline
        ln -sfn "$prefix/bin/flawline" /usr/local/bin/flawline
        # The edge's unit names them and does not start without; a Debian without udev has no `render`.
        for group in video render plugdev; do
            getent group "$group" >/dev/null || groupadd --system "$group"
        done
    fi
    mkdir -p "$root/etc/flawline" "$root/var/lib/flawline" "$root/etc/systemd/system"
    extras=$(sed -n 's/^flawline\[\(.*\)\]==.*/\1/p' "$here/requirements.txt")
    for side in edge host; do
        case ",$extras," in *",$side,"*) ;; *) continue ;; esac
        config="$root/etc/flawline/$side.toml"
        if [ ! -e "$config" ]; then
            "$target/bin/flawline" "$side" init "$config" >/dev/null
            # Paths of an installed box: the state outlives the programs, the bundle has its two slots there.
            sed -i -e 's|^bundle = "bundle" .*|bundle = "/var/lib/flawline/slots/active"  # filled by flawline edge update|' \
                   -e 's|^state_dir = .*|state_dir = "/var/lib/flawline/host"|' \
                   -e 's|?path=outputs.jsonl|?path=/var/lib/flawline/outputs.jsonl|' "$config"
            [ "$side" = host ] || sed -i '2i state_dir = "/var/lib/flawline/edge"' "$config"
        fi
        cp "$here/deploy/flawline-$side.service" "$root/etc/systemd/system/"
    done
    [ -n "$root" ] || chown flawline:flawline /var/lib/flawline
    chmod 0750 "$root/var/lib/flawline"

    step 4 "systemd"
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    else
        echo "      not running here: the units are in place, nothing was started"
    fi
else
    step 3 "no user, no units: --prefix was given"
fi

step 5 "flawline doctor"
"$prefix/bin/flawline" doctor || fail "the doctor found what has to be mended first (see above); all is installed"
echo "Installed: $prefix -> $(basename "$target")"
[ -z "$before" ] || echo "The version before: ln -sfn $before $prefix"
[ "$system" = no ] || echo "Next: docs/deploy.md in $prefix/docs, from 'The first bundle' on"
