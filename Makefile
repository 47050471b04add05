# shadowset: build, check, install.
#
#   make build            the release programs
#   make test             every check; installs missing test tools with apt; root and /dev/fuse
#   make sim SEEDS=N      the simulator with N seeds
#   make install          into $(DESTDIR)$(PREFIX), mount helpers into $(DESTDIR)$(SBINDIR)
#   make uninstall        takes away what install has put there
#   make clean

CARGO   ?= cargo
PREFIX  ?= /usr/local
SBINDIR ?= /sbin
DESTDIR ?=

COMPLETIONS := $(PREFIX)/share/bash-completion/completions

TARGET  := $(or $(CARGO_TARGET_DIR),target)

# A program that a test runs, and the Debian package that brings it.
TOOLS := fio:fio mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs mkfs.ext4:e2fsprogs \
	e2fsck:e2fsprogs losetup:mount blkdiscard:util-linux fstrim:util-linux \
	fsfreeze:util-linux fusermount3:fuse3 python3:python3 mandoc:mandoc \
	nbdkit:nbdkit nbdfuse:libnbd-bin systemd-analyze:systemd udevadm:udev

# A Python module that a test uses, and the Debian package that brings it to Debian's own Python.
MODULES := prometheus_client:python3-prometheus-client jsonschema:python3-jsonschema

.PHONY: all build test tools lint doc man unit sim install uninstall clean

all: build

build:
	$(CARGO) build --release --workspace --locked

test: tools lint doc man unit

# Installs only what is missing, and asks for privilege only then.
tools:
	@missing=; PATH="$$PATH:/usr/sbin:/sbin"; \
	for tool in $(TOOLS); do \
		command -v "$${tool%%:*}" >/dev/null 2>&1 || missing="$$missing $${tool#*:}"; \
	done; \
	for module in $(MODULES); do \
		/usr/bin/python3 -c "import $${module%%:*}" 2>/dev/null || missing="$$missing $${module#*:}"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	echo "installing$$missing"; \
	$$as_root apt-get update -q && \
	$$as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -q --no-install-recommends $$missing

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

man:
	mandoc -Tlint -Wwarning man/*.[78]

unit:
	$(CARGO) test --workspace --locked

# A debug build: the core's assertions are on.
SEEDS ?= 100000
sim:
	SIM_SEEDS=$(SEEDS) $(CARGO) test --locked --test sim seeds_hold -- --nocapture

install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SBINDIR) \
		$(DESTDIR)$(PREFIX)/share/man/man7 $(DESTDIR)$(PREFIX)/share/man/man8 \
		$(DESTDIR)$(PREFIX)/share/doc/shadowset/examples $(DESTDIR)$(COMPLETIONS)
	install -m 0755 $(TARGET)/release/shadowset $(DESTDIR)$(PREFIX)/bin/
	install -m 0755 $(TARGET)/release/mount-shadowset $(DESTDIR)$(SBINDIR)/mount.shadowset
	ln -sf mount.shadowset $(DESTDIR)$(SBINDIR)/mount.fuse.shadowset
	ln -sf mount.shadowset $(DESTDIR)$(SBINDIR)/umount.fuse.shadowset
	ln -sf mount.shadowset $(DESTDIR)$(SBINDIR)/umount.shadowset
	install -m 0644 man/shadowset.8 $(DESTDIR)$(PREFIX)/share/man/man8/
	install -m 0644 man/shadowset-control.7 $(DESTDIR)$(PREFIX)/share/man/man7/
	install -m 0644 examples/*.toml $(DESTDIR)$(PREFIX)/share/doc/shadowset/examples/
	$(TARGET)/release/shadowset completions bash > $(DESTDIR)$(COMPLETIONS)/shadowset
	chmod 0644 $(DESTDIR)$(COMPLETIONS)/shadowset

# Configurations, state and images are the operator's and stay.
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/shadowset $(DESTDIR)$(COMPLETIONS)/shadowset \
		$(DESTDIR)$(SBINDIR)/mount.shadowset $(DESTDIR)$(SBINDIR)/mount.fuse.shadowset \
		$(DESTDIR)$(SBINDIR)/umount.fuse.shadowset \
		$(DESTDIR)$(PREFIX)/share/man/man8/shadowset.8 \
		$(DESTDIR)$(PREFIX)/share/man/man7/shadowset-control.7
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/shadowset

clean:
	$(CARGO) clean
