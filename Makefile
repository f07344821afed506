# jobqueue: a job queue inside PostgreSQL
#
#   make                build jobqueue.so        (COPT=-Werror, TESTING=1,
#                       LOCKSTAT=1)
#   make install        install it where pg_config points
#   make demo           see it work, in a private server that is removed again
#   make test           all tests, in a private server
#                       (SUITE=regress|isolation|tap|bench, TESTS="name name")
#   make chaos          all at once, under faults of all kinds (MINUTES=10,
#                       SEED=n repeats the choices of a run)
#   make test-versions  all tests, with PostgreSQL 15, 17 and 18 (VERSIONS="17")
#   make test-assert    all tests, with PostgreSQL built with assertions
#                       (VERSIONS="15 18"; DISCARD_CACHES=1; SANITIZE=address)
#   make bench          how fast it is, beside plain SQL (BENCH="--short")
#   make model          check the model of the protocol (test/model, Spin)
#   make lint           what static analyzers say (test/lint.sh)
#   make fuzz           random input under sanitizers (SECONDS_EACH=60), then
#                       random SQL and random commands, each for as long
#                       (SEED=n repeats their choices)
#   make coverage       which lines the tests run (DIR= keeps the report)
#   make format         clang-format all C files; format-check only looks
#
# Another PostgreSQL than the default: PG_CONFIG=/path/to/pg_config, or
# PGVERSION=17, or PG_PREFIX=/where/a/self-built/one/is.

ifdef PG_PREFIX
PG_CONFIG ?= $(PG_PREFIX)/bin/pg_config
endif
ifdef PGVERSION
PG_CONFIG ?= /usr/lib/postgresql/$(PGVERSION)/bin/pg_config
endif
ifneq ($(origin PG_CONFIG),undefined)
PG_CONFIG_GIVEN := $(PG_CONFIG)
endif
PG_CONFIG ?= pg_config

EXTENSION = jobqueue
MODULE_big = jobqueue
DATA = $(wildcard sql/jobqueue--*.sql)
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
C_FILES = $(sort $(wildcard src/*.[ch]))

# The server's headers are not clean under these three.
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -Wno-declaration-after-statement -MMD -MP
# ... and were configured for gcc, which clang says once for each of them.
ifneq ($(findstring clang,$(CC)),)
PG_CFLAGS += -Wno-ignored-attributes -Wno-ignored-optimization-argument \
	-Wno-unknown-warning-option -Wno-unused-command-line-argument \
	-Wno-compound-token-split-by-macro
endif
ifeq ($(TESTING),1)
PG_CPPFLAGS += -DJQ_TESTING
endif
ifeq ($(LOCKSTAT),1)
PG_CPPFLAGS += -DJQ_LOCKSTAT
endif
override with_llvm := no

# `make test` runs the same suites in a private server. installcheck takes an
# installed jobqueue and, as pg_regress starts its own server, not root.
REGRESS := $(filter-out jobqueue--%,$(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql))))
REGRESS_OPTS = --temp-instance=tmp_check_regress \
	--temp-config=test/jobqueue.conf --load-extension=jobqueue \
	--encoding=UTF8 --no-locale
ISOLATION := $(patsubst test/specs/%.spec,%,$(sort $(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test --temp-instance=tmp_check_iso \
	--temp-config=test/jobqueue.conf --load-extension=jobqueue \
	--encoding=UTF8 --no-locale \
	$(if $(filter 15,$(MAJORVERSION)),,--expecteddir=test)
TAP_TESTS := $(if $(wildcard test/t/*.pl),1)
PROVE_TESTS ?= test/t/*.pl

EXTRA_CLEAN = $(OBJS:.o=.d) src/.buildflags results output_iso log tmp_check \
	tmp_check_iso tmp_check_regress regression.diffs regression.out

# Debian has PGXS in the client's package, the headers in one of their own.
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
POSTGRES_H := $(shell $(PG_CONFIG) --includedir-server 2>/dev/null)/postgres.h
ifneq ($(and $(wildcard $(PGXS)),$(wildcard $(POSTGRES_H))),)
include $(PGXS)

# Objects depend on the headers they really read (-MMD) and on how they are
# built: another server version, other flags or a file less rebuild all.
BUILD_FLAGS := $(shell $(PG_CONFIG) --version) $(CFLAGS) $(CPPFLAGS) $(OBJS)

src/.buildflags: FORCE
	@echo '$(BUILD_FLAGS)' | cmp -s - $@ || echo '$(BUILD_FLAGS)' > $@

$(OBJS): src/.buildflags

-include $(OBJS:.o=.d)
else
all install installcheck clean:
	@echo "The PostgreSQL server headers are missing" \
		"(Debian: apt-get install postgresql-server-dev-N)," >&2
	@echo "or name your server's: make PG_CONFIG=/path/to/pg_config" >&2
	@exit 1
endif

# These need no PGXS yet: they install what is missing first (as root), or say
# what it is.
RUN_ENV = $(if $(PG_CONFIG_GIVEN),PG_CONFIG='$(PG_CONFIG_GIVEN)') \
	PG_PREFIX='$(PG_PREFIX)' PGVERSION='$(PGVERSION)'

demo:
	@$(RUN_ENV) test/demo/demo.sh

test:
	@$(RUN_ENV) SUITE='$(SUITE)' TESTS='$(TESTS)' KEEP='$(KEEP)' test/run.sh

MINUTES ?= 10

chaos:
	@$(RUN_ENV) SUITE=tap TESTS=053_chaos KEEP='$(KEEP)' JQ_SEED='$(SEED)' \
		JQ_SECONDS=$$(($(MINUTES) * 60)) \
		TAP_TIMEOUT=$$(($(MINUTES) * 120 + 600)) test/run.sh

test-versions:
	@SUITE='$(SUITE)' TESTS='$(TESTS)' test/versions.sh $(VERSIONS)

test-assert:
	@SUITE='$(SUITE)' TESTS='$(TESTS)' \
		DISCARD_CACHES='$(DISCARD_CACHES)' SANITIZE='$(SANITIZE)' \
		test/assert.sh $(VERSIONS)

bench:
	@$(RUN_ENV) test/bench/run $(BENCH)

CLANG_FORMAT ?= clang-format

model:
	@test/model/run.sh $(MODEL)

lint:
	@$(RUN_ENV) test/lint.sh

SECONDS_EACH ?= 60

fuzz:
	@$(RUN_ENV) SECONDS_EACH='$(SECONDS_EACH)' WORK='$(WORK)' test/fuzz/run.sh
	@$(RUN_ENV) SUITE=tap TESTS='056_fuzz 057_commands' KEEP='$(KEEP)' \
		JOBS=1 JQ_SEED='$(SEED)' JQ_SECONDS='$(SECONDS_EACH)' \
		TAP_TIMEOUT=$$(($(SECONDS_EACH) * 3 + 900)) test/run.sh

coverage:
	@$(RUN_ENV) DIR='$(DIR)' SUITE='$(SUITE)' TESTS='$(TESTS)' test/coverage.sh

format:
	$(CLANG_FORMAT) -i $(C_FILES)

format-check:
	$(CLANG_FORMAT) --dry-run --Werror $(C_FILES)

.PHONY: demo test chaos test-versions test-assert bench model lint fuzz coverage format \
	format-check FORCE
FORCE:
