# shadowset: build, check, install.
#
#   make build            the release programs
#   make test             every check; installs missing test tools with apt; root and /dev/fuse
#   make sim SEEDS=N      the simulator with N seeds
#   make soak MINUTES=N   loads of Debian's packages on a unit whose members come and go, and whose server is killed
#   make fuzz SECONDS=N   every fuzz target for N seconds; a nightly toolchain; installs cargo-fuzz when it is missing
#   make coverage         line coverage by all tests; installs the tools of rustc's LLVM with apt when they are missing
#   make small DEPTH=N    every order of N things that begin, in a small world; MEMBERS=2 or 3, WORLD=returns or departures
#                         or failures for a part of what can begin
#   make model MORE=N     the model of elections with N more mounts, changes and failures
#   make mutants          changes of operators and bodies in src/set, each of which a test must notice; many hours,
#                         SHARD=k/n for one part of n; installs cargo-mutants when it is missing
#   make stories STORIES=N  N seeds of a mounted unit against a flat model; needs what make test needs
#   make power ROUNDS=N   N rounds of losses of power; needs what make test needs
#   make nth              each operation of the scripts fails or is the last one: hours; as make test
#   make nightly          make test and the long ones, for most of a day: what survives or fails ends it
#   make schedule         the server under SCHEDULES=N schedules for each scenario; SCHEDULE=... runs some again
#   make bench            what parts of a write cost, then a unit beside its peers; root and /dev/fuse;
#                         BENCH="NAME=VALUE ..." says what and how long, see docs/performance.md
#   make bench-peers      installs with apt the peers that make bench has use for
#   make install          into $(DESTDIR)$(PREFIX), mount helpers into $(DESTDIR)$(SBINDIR)
#   make uninstall        takes away what install has put there
#   make deb              a Debian package in $(TARGET)/debian; installs cargo-deb when it is missing
#   make deb-check        lintian, and the package in a clean root; root and /dev/fuse
#   make clean

CARGO   ?= cargo
PREFIX  ?= /usr/local
SBINDIR ?= /sbin
DESTDIR ?=

BINDIR  := $(PREFIX)/bin
MANDIR  := $(PREFIX)/share/man
DOCDIR  := $(PREFIX)/share/doc/shadowset
# Where systemd, udev and the shells look too.
UNITDIR ?= $(PREFIX)/lib/systemd/system
RULEDIR ?= $(PREFIX)/lib/udev/rules.d
TMPFDIR ?= $(PREFIX)/lib/tmpfiles.d
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR  ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d

# The names under which mount(8) and umount(8) look for the helper.
HELPERS := mount.fuse.shadowset umount.shadowset umount.fuse.shadowset

TARGET  := $(or $(CARGO_TARGET_DIR),target)
# What install takes.
BUILT   ?= $(TARGET)/release

# A program that a test runs, and the Debian package that brings it.
TOOLS := fio:fio mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs mkfs.ext4:e2fsprogs \
	e2fsck:e2fsprogs losetup:mount blkdiscard:util-linux fstrim:util-linux \
	fsfreeze:util-linux fusermount3:fuse3 python3:python3 mandoc:mandoc \
	groff:groff-base qemu-io:qemu-utils pdp11:simh strace:strace \
	nbdkit:nbdkit nbdfuse:libnbd-bin systemd-analyze:systemd udevadm:udev \
	stress-ng:stress-ng dbench:dbench bonnie++:bonnie++ sqlite3:sqlite3

# What only `make soak` needs.
SOAK_TOOLS := initdb:postgresql pgbench:postgresql pg_amcheck:postgresql

# What `make bench` compares with.
PEERS := fio:fio nbdkit:nbdkit nbdfuse:libnbd-bin qemu-storage-daemon:qemu-utils mkfs.btrfs:btrfs-progs

# A Python module that a test uses, and the Debian package that brings it to Debian's own Python.
MODULES := prometheus_client:python3-prometheus-client jsonschema:python3-jsonschema

.PHONY: all build test tools lint doc man unit sim small mutants model soak fuzz coverage stories power nth nightly schedule bench bench-peers install install-files uninstall deb deb-check clean

all: build

build:
	$(CARGO) build --release --workspace --locked

test: tools lint doc man unit schedule

# Installs only what is missing, and asks for privilege only then.
tools:
	@missing=; PATH="$$PATH:/usr/sbin:/sbin$$(printf ':%s' /usr/lib/postgresql/*/bin)"; \
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
	mandoc -Tlint -Wwarning man/*.[578]
	for page in man/*.[578]; do \
		says=$$(groff -mandoc -Tutf8 -ww -z $$page 2>&1) && [ -z "$$says" ] || \
			{ echo "$$says"; exit 1; }; \
	done

unit:
	$(CARGO) test --workspace --locked

# With the core's assertions. FIRST begins at another seed.
SEEDS ?= 100000
FIRST ?= 0
JOBS  ?= $(shell nproc)
sim:
	SIM_SEEDS=$(SEEDS) SIM_FIRST=$(FIRST) SIM_THREADS=$(JOBS) \
		$(CARGO) test --locked --profile sim --test sim seeds_ -- --nocapture --test-threads=1

# SHADOWSET_SOAK_SEED has the loads and the conductor decide as in an earlier run.
MINUTES ?= 60
soak: TOOLS += $(SOAK_TOOLS)
soak: tools
	SHADOWSET_SOAK_MINUTES=$(MINUTES) $(CARGO) test --locked --test soak -- --ignored --nocapture

# The newest that is known to build with the toolchain of this tree.
CARGO_FUZZ := 0.13.2
SECONDS    ?= 60
FUZZED     := $(TARGET)/fuzz
# Scratch files in memory: a sync of a disk would take longer than all else.
FUZZ       := TMPDIR=/dev/shm $(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz --target-dir $(FUZZED)
# A seed of a target is a regression test of `make test` as well. No input makes more memory than it is worth.
fuzz:
	$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install cargo-fuzz --version $(CARGO_FUZZ) --locked
	for target in $$(ls tests/fuzz/seeds); do \
		words=; [ ! -f tests/fuzz/words/$$target ] || words=-dict=tests/fuzz/words/$$target; \
		kept=; [ $$target != scb ] || kept=tests/formats/v1; \
		mkdir -p $(FUZZED)/found/$$target $(FUZZED)/failed/$$target && \
		$(FUZZ) $$target $(FUZZED)/found/$$target tests/fuzz/seeds/$$target $$kept -- $$words \
			-max_total_time=$(SECONDS) -max_len=20000 -malloc_limit_mb=8 -print_final_stats=1 \
			-artifact_prefix=$(FUZZED)/failed/$$target/ || exit 1; done

# Programs with counters have a folder of their own.
LLVM := $$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
coverage: tools
	command -v llvm-cov-$(LLVM) >/dev/null || { \
		as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
		$$as_root apt-get update -q && $$as_root apt-get install -y -q --no-install-recommends llvm-$(LLVM); }
	python3 tests/coverage.py $(TARGET)/coverage $(LLVM)
DEPTH   ?= 2
# 2 or 3; with nothing, both.
MEMBERS ?=
small:
	SMALL_DEPTH=$(DEPTH) SMALL_MEMBERS=$(MEMBERS) SMALL_WORLD=$(WORLD) $(CARGO) test --locked --profile sim --test sim as_deep_as_asked -- --nocapture

MORE ?= 1
model:
	MODEL_MORE=$(MORE) $(CARGO) test --locked --test model every_state -- --nocapture

# The newest that is known to build with the toolchain of this tree.
CARGO_MUTANTS := 27.1.0
SHARD ?= 0/1
# 3: some turn for ever, which is noticed. One takes all memory that it gets.
mutants:
	$(CARGO) mutants --version >/dev/null 2>&1 || \
		$(CARGO) install cargo-mutants --version $(CARGO_MUTANTS) --locked
	ulimit -v 16000000; SIM_SEEDS=1000 PROPTEST_CASES=64 CARGO_PROFILE_DEV_DEBUG=false \
		$(CARGO) mutants --output $(TARGET) --shard $(SHARD) || \
		{ [ $$? = 3 ] && [ ! -s $(TARGET)/mutants.out/missed.txt ]; }

STORIES ?= 500
stories: tools
	SHADOWSET_REF_SEEDS=$(STORIES) $(CARGO) test --locked --test mount reference:: -- --nocapture

ROUNDS ?= 500
power: tools
	SHADOWSET_POWER_ROUNDS=$(ROUNDS) $(CARGO) test --locked --test mount power::what -- --nocapture

nth: tools
	SHADOWSET_NTH=all $(CARGO) test --locked --test mount nth:: -- --nocapture

# Another part of the changes of src/set each day.
nightly: test
	SHADOWSET_CYCLES=500 SHADOWSET_KILL_ROUNDS=200 $(CARGO) test --locked --test mount -- cycles kill
	$(MAKE) sim SEEDS=1000000
	$(MAKE) small MEMBERS=2
	$(MAKE) small MEMBERS=3 WORLD=returns
	$(MAKE) schedule SCHEDULES=1000
	$(MAKE) stories power nth
	$(MAKE) fuzz SECONDS=300
	$(MAKE) soak MINUTES=60
	$(MAKE) mutants SHARD=$$(expr $$(date +%s) / 86400 % 50)/50

# Its flags are others, and so is its directory.
SCHEDULES ?= 2000
test: SCHEDULES = 60
schedule:
	RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=$(TARGET)/schedule SCHEDULES=$(SCHEDULES) SCHEDULE=$(SCHEDULE) \
		$(CARGO) test --locked --test schedule -- $(if $(SCHEDULE),scenarios --nocapture)

BENCH ?=
bench:
	$(CARGO) bench --locked --bench structures
	$(CARGO) bench --locked --bench unit -- $(BENCH)

bench-peers: TOOLS := $(PEERS)
bench-peers: MODULES :=
bench-peers: tools

install: build install-files

PLACE = install -D -m

install-files:
	$(PLACE) 0755 $(BUILT)/shadowset $(DESTDIR)$(BINDIR)/shadowset
	$(PLACE) 0755 $(BUILT)/mount-shadowset $(DESTDIR)$(SBINDIR)/mount.shadowset
	for name in $(HELPERS); do \
		ln -sf mount.shadowset $(DESTDIR)$(SBINDIR)/$$name && \
		install -d $(DESTDIR)$(MANDIR)/man8 && \
		echo ".so man8/mount.shadowset.8" > $(DESTDIR)$(MANDIR)/man8/$$name.8 && \
		chmod 0644 $(DESTDIR)$(MANDIR)/man8/$$name.8 || exit 1; done
	for page in man/*.[578]; do \
		$(PLACE) 0644 $$page $(DESTDIR)$(MANDIR)/man$${page##*.}/$${page#man/} || exit 1; done
	for unit in mountpoint-helper/systemd/*; do \
		install -d $(DESTDIR)$(UNITDIR) && \
		sed 's|/usr/bin/shadowset|$(BINDIR)/shadowset|' $$unit > $(DESTDIR)$(UNITDIR)/$${unit##*/} && \
		chmod 0644 $(DESTDIR)$(UNITDIR)/$${unit##*/} || exit 1; done
	install -d $(DESTDIR)$(RULEDIR)
	sed 's|/usr/bin/shadowset|$(BINDIR)/shadowset|' mountpoint-helper/udev/90-shadowset.rules \
		> $(DESTDIR)$(RULEDIR)/90-shadowset.rules
	chmod 0644 $(DESTDIR)$(RULEDIR)/90-shadowset.rules
	$(PLACE) 0644 mountpoint-helper/tmpfiles.d/shadowset.conf $(DESTDIR)$(TMPFDIR)/shadowset.conf
	for file in *.md LICENSE-* docs/*.md docs/*/*.md docs/status.schema.json; do \
		$(PLACE) 0644 $$file $(DESTDIR)$(DOCDIR)/$$file || exit 1; done
	install -d $(DESTDIR)$(DOCDIR)
	cp -R examples $(DESTDIR)$(DOCDIR)/
	chmod -R u+rwX,go=rX $(DESTDIR)$(DOCDIR)
	install -d $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR)
	$(BUILT)/shadowset completions bash > $(DESTDIR)$(BASHDIR)/shadowset
	$(BUILT)/shadowset completions zsh > $(DESTDIR)$(ZSHDIR)/_shadowset
	$(BUILT)/shadowset completions fish > $(DESTDIR)$(FISHDIR)/shadowset.fish
	chmod 0644 $(DESTDIR)$(BASHDIR)/shadowset $(DESTDIR)$(ZSHDIR)/_shadowset $(DESTDIR)$(FISHDIR)/shadowset.fish

# Configurations, state and images are the operator's and stay.
uninstall:
	rm -f $(DESTDIR)$(BINDIR)/shadowset $(DESTDIR)$(SBINDIR)/mount.shadowset \
		$(DESTDIR)$(RULEDIR)/90-shadowset.rules $(DESTDIR)$(TMPFDIR)/shadowset.conf \
		$(DESTDIR)$(BASHDIR)/shadowset $(DESTDIR)$(ZSHDIR)/_shadowset $(DESTDIR)$(FISHDIR)/shadowset.fish
	for name in $(HELPERS); do \
		rm -f $(DESTDIR)$(SBINDIR)/$$name $(DESTDIR)$(MANDIR)/man8/$$name.8; done
	for page in man/*.[578]; do rm -f $(DESTDIR)$(MANDIR)/man$${page##*.}/$${page#man/}; done
	for unit in mountpoint-helper/systemd/*; do rm -f $(DESTDIR)$(UNITDIR)/$${unit##*/}; done
	rm -rf $(DESTDIR)$(DOCDIR)

# The newest that is known to build with the toolchain of this tree.
CARGO_DEB := 3.8.0
# Cargo.toml names it too.
STAGE     := target/stage

# The content is what install puts into a root of its own.
deb: build
	$(CARGO) deb --version >/dev/null 2>&1 || $(CARGO) install cargo-deb --version $(CARGO_DEB) --locked
	rm -rf $(STAGE)
	$(MAKE) install-files DESTDIR=$(STAGE) PREFIX=/usr SBINDIR=/usr/sbin UNITDIR=/lib/systemd/system \
		RULEDIR=/lib/udev/rules.d ZSHDIR=/usr/share/zsh/vendor-completions
	$(CARGO) deb --no-build --locked --strip --output $(TARGET)/debian/

deb-check: deb
	sh packaging/deb/check.sh $(TARGET)/debian/shadowset_*.deb

clean:
	$(CARGO) clean
