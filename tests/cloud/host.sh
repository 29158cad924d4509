# The first process of an emulated instance:  host.sh DISK EXPORTS IMAGE ADDRESS AWS_URL
#   DISK: what the host writes. EXPORTS: what hosts export by NFS. IMAGE: packages and uv's cache, read only.
set -e
DISK=$1 EXPORTS=$2 IMAGE=$3 ADDRESS=$4 AWS_URL=$5
NAME=ip-${ADDRESS//./-}
mount --make-rprivate /
hostname "$NAME"
for folder in etc usr var; do
  mkdir "$DISK/$folder" "$DISK/$folder.work"
  mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$DISK/$folder,workdir=$DISK/$folder.work" "/$folder"
done
mkdir "$DISK"/{tmp,home,mnt,uv,uv.work} "$EXPORTS/$ADDRESS"
chmod 1777 "$DISK/tmp"
mount -t tmpfs -o mode=755 srv /srv
mkdir /srv/{wheels,uv-cache,exports}
mount --bind -o ro "$IMAGE/wheels" /srv/wheels
mount -t overlay overlay -o "lowerdir=$IMAGE/uv-cache,upperdir=$DISK/uv,workdir=$DISK/uv.work" /srv/uv-cache
chown 1000:1000 /srv/uv-cache
mount --bind "$EXPORTS" /srv/exports
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run && mkdir -p /run/sshd /run/lock
mount --bind "$DISK/home" /home
mount --bind "$DISK/mnt" /mnt
mount -t tmpfs -o mode=700 root /root

# What the machine image would bring.
printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$NAME" > /etc/hosts
echo "$NAME" > /etc/hostname
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
rm -rf /etc/xdg/pip /etc/pip.conf
old=$(getent passwd 1000 | cut -d: -f1); [ -z "$old" ] || userdel "$old"
useradd --password '*' --create-home --shell /bin/bash --uid 1000 ubuntu
echo 'ubuntu ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/90-ubuntu && chmod 440 /etc/sudoers.d/90-ubuntu
install -d -m 700 -o ubuntu -g ubuntu /home/ubuntu/.ssh /home/ubuntu/.aws
install -m 600 -o ubuntu -g ubuntu "$DISK/authorized_keys" /home/ubuntu/.ssh/authorized_keys
printf '[default]\nendpoint_url = %s\n' "$AWS_URL" > /home/ubuntu/.aws/config
printf '[default]\naws_access_key_id = test\naws_secret_access_key = test\n' > /home/ubuntu/.aws/credentials
chown ubuntu:ubuntu /home/ubuntu/.aws/*

# No package server can be reached, and the kernel may have no NFS: an export becomes a folder that every host sees, and
# an NFS mount a bind mount of it. First on sudo's path.
cat > /usr/local/sbin/apt-get <<'STUB'
#!/bin/sh
echo "apt-get $*" >> /var/log/stubs.log
STUB
cat > /usr/local/sbin/exportfs <<STUB
#!/bin/sh
grep -q ^/mnt/raypipe /etc/exports && mount --bind /srv/exports/$ADDRESS /mnt/raypipe
STUB
cat > /usr/local/sbin/mount <<'STUB'
#!/bin/bash
if [[ "$*" == *"-t nfs4"* ]]; then
  from=${@: -2:1}
  [[ $from == *:/mnt/raypipe ]] || { echo "mount: $from is not exported" >&2; exit 32; }
  exec /usr/bin/mount --bind "/srv/exports/${from%%:*}" "${@: -1}"
fi
exec /usr/bin/mount "$@"
STUB
chmod 755 /usr/local/sbin/*

ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/cloud_key
cat > /etc/ssh/cloud_config <<CONFIG
Port 22
HostKey /etc/ssh/cloud_key
PidFile /run/sshd.pid
UsePAM no
PasswordAuthentication no
PrintMotd no
PrintLastLog no
MaxSessions 50
MaxStartups 50
SetEnv AWS_ENDPOINT_URL=$AWS_URL AUTOSCALER_UPDATE_INTERVAL_S=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels UV_OFFLINE=1 UV_FIND_LINKS=/srv/wheels UV_CACHE_DIR=/srv/uv-cache UV_LINK_MODE=symlink
CONFIG
mount --bind "$DISK/tmp" /tmp
cd /
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -D -e -f /etc/ssh/cloud_config &
echo up
wait
