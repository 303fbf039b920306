# $1: 0 on removal, 1 on upgrade: a running node is restarted into the new version.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload >/dev/null 2>&1 || :
    if [ "$1" -ge 1 ]; then
        systemctl try-restart rushkv.service >/dev/null 2>&1 || :
    fi
fi
if [ "$1" -eq 0 ] && [ -d /var/lib/rushkv ]; then
    echo "rushkv: the data stays in /var/lib/rushkv; remove it with: rm -r /var/lib/rushkv"
fi
