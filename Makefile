# make build       all programs, into bin/
# make demo        the main job, end to end, on this machine (TAMPER=config|model|quote|broker|key|argv, WIRE=legacy,
#                  BACKEND=grpc-ratls|maa|aecs; PLATFORM=linux: with a software TPM instead of Occlum, TAMPER=pcr|ak)
# make test        all tests, race detector on; then those that try every input in one goroutine, without it
# make test-short  the quick tests and samples of the others, without the race detector
# make attack      attacks on the whole broker, at most 10 minutes: what docs/trust.md has
# make test-vm     init in a virtual machine, as process 1 and under systemd
# make e2e-k8s     the deployment on the cluster of the current kubeconfig
# make lint        formatting, vet, staticcheck, and whether docs/api.txt is in step
# make generate    the Go code of the .proto files anew (generate-check: fails if the code that is checked in differs)
# make api         the list of exported names, docs/api.txt, anew
# make map         the map of the house, docs/house.svg, anew
# make english     how often some words occur in comments
# make bench       what docs/benchmarks.md has
# make fuzz        each fuzz target for FUZZTIME
# make deps        the Debian packages for build and demo (deps-linux, deps-lint, deps-generate, deps-test, deps-vm: for what
#                  the name says)
# make stamp       today's date into internal/version, the lower bound of every clock (check-date: fails if it is old)
# make clean       removes bin/ and build/
# make help        this list

GO         ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.7.0
GO_PLUGIN   = google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GRPC_PLUGIN = google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
PROTOC_VERSION = 3.21.12
HELM        = helm.sh/helm/v3/cmd/helm@v3.22.0
FUZZTIME   ?= 60s
BENCHSIZE  ?= 1GiB
TAMPER     ?=
WIRE       ?= session
TLS        ?= broker
PLATFORM   ?= occlum
BACKEND    ?= grpc-ratls

# The loader that an Occlum initfs holds.
INTERPRETER = /lib/ld-musl-x86_64.so.1

# Programs that run inside the LibOS are built with the patched Go runtime (package internal/occlum/goruntime says why).
OVERLAY     = build/overlay/overlay.json
LIBOS_FLAGS = -trimpath -buildvcs=false -overlay $(OVERLAY) -buildmode=pie -ldflags "-s -w -I $(INTERPRETER) \
              -X runtime.godebugDefault=madvdontneed=0,asyncpreemptoff=1 -X main.where=occlum"
# go replaces no files of a toolchain in the module cache (GOTOOLCHAIN): the overlay is then for a link to it.
LIBOS_GO    = $(shell test -e build/overlay/goroot && \
              echo GOTOOLCHAIN=local GOROOT=$(CURDIR)/build/overlay/goroot build/overlay/goroot/bin/go || echo $(GO))
PLAIN_FLAGS = -trimpath -buildvcs=false -ldflags "-s -w"

.PHONY: build demo test test-short attack test-vm e2e-k8s lint generate generate-check api map english
.PHONY: stamp check-date bench fuzz clean model help deps deps-linux deps-lint deps-generate deps-test deps-vm

help:
	@sed -n 's/^# \(make .*\|  .*\)/\1/p' Makefile

build: deps bin/init bin/sesame bin/keybroker bin/occlum bin/tensorflow_model_server bin/libos/keybroker \
       bin/libos/tensorflow_model_server bin/init-linux
	@bin/sesame occlum check-elf --interpreter $(INTERPRETER) --max-size 16MB bin/init
	@bin/sesame occlum check-elf --interpreter $(INTERPRETER) bin/libos/keybroker

.PHONY: bin/init bin/sesame bin/keybroker bin/occlum bin/tensorflow_model_server bin/libos/keybroker $(OVERLAY)
.PHONY: bin/libos/tensorflow_model_server bin/init-linux
$(OVERLAY):
	@$(GO) run ./internal/occlum/goruntime -o $(@D) >/dev/null
bin/init: $(OVERLAY)
	CGO_ENABLED=0 $(LIBOS_GO) build $(LIBOS_FLAGS) -o $@ ./init
# The same init for plain Linux, with all attesters.
bin/init-linux:
	CGO_ENABLED=0 $(GO) build -tags plainlinux $(PLAIN_FLAGS) -o $@ ./init
# The key broker as it is packed into an Occlum instance.
bin/libos/keybroker: $(OVERLAY)
	CGO_ENABLED=0 $(LIBOS_GO) build $(LIBOS_FLAGS) -o $@ ./cmd/keybroker
# The stand-in as it is packed into an instance.
bin/libos/tensorflow_model_server: $(OVERLAY)
	CGO_ENABLED=0 $(LIBOS_GO) build $(LIBOS_FLAGS) -o $@ ./lab/standin/$(@F)
bin/sesame bin/keybroker:
	CGO_ENABLED=0 $(GO) build $(PLAIN_FLAGS) -o $@ ./cmd/$(@F)
bin/occlum:
	CGO_ENABLED=0 $(GO) build $(PLAIN_FLAGS) -o $@ ./lab/$(@F)
bin/tensorflow_model_server:
	CGO_ENABLED=0 $(GO) build $(PLAIN_FLAGS) -o $@ ./lab/standin/$(@F)

# The stand-in's network and pictures to ask it about.
model: build/model/.done
build/model/.done: $(wildcard lab/standin/*.go lab/standin/*/*.go)
	$(GO) run ./lab/standin/makemodel -o build/model
	@touch $@

demo: build model $(if $(filter linux,$(PLATFORM)),deps-linux)
	@$(GO) run ./lab/demo -platform $(PLATFORM) -backend $(BACKEND) -wire $(WIRE) -tls $(TLS) $(if $(TAMPER),-tamper $(TAMPER))

# As root, for the power cuts' file system. It ends with a table; go doc ./lab/attack says how one class runs alone.
attack: deps-test
	@cd lab/attack && $(GO) test -count=1 -timeout 10m -run Nothing -full

# Packages with a sweep (internal/testenv) are tested once more without the race detector, and with all inputs then.
SWEEPS = $(addprefix ./,$(sort $(dir $(shell git grep -lE 'testenv\.(Long)?Sweep\b' -- '*_test.go'))))
test: build model deps-test
	$(GO) test -race -timeout 40m ./...
	CGO_ENABLED=0 $(GO) test -trimpath -timeout 40m $(SWEEPS)
# No Debian packages are installed for it: what lacks one is skipped.
test-short: build model
	$(GO) test -short ./...

# init as process 1 of a Debian kernel in QEMU, with a software TPM at /dev/tpm0, and under systemd of a Debian there. Takes
# two minutes without other load, and the first time two more.
VM_KERNEL = build/vm/kernel
VM_DEBIAN = build/vm/debian.ext2
VM_ARCHIVE = $(firstword $(wildcard /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list))
test-vm: build deps-vm $(VM_KERNEL)/.done $(VM_DEBIAN)
	SESAME_REQUIRE=vm $(GO) test -tags vm -count=1 -timeout 20m -v ./lab/vm
$(VM_KERNEL)/.done:
	@rm -rf $(@D) && mkdir -p $(@D)
	@cd $(@D)/.. && apt-get download -qq "$$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $$2; exit}')" && \
	  dpkg-deb -x linux-image-*.deb kernel && rm linux-image-*.deb
	@touch $@
$(VM_DEBIAN):
	@mkdir -p $(@D) && rm -f $(@D)/new.ext2
	@mmdebstrap --quiet --variant=essential --include=systemd,procps bookworm $(@D)/new.ext2 $(VM_ARCHIVE)
	@truncate -s 400M $(@D)/new.ext2 && PATH=$$PATH:/usr/sbin:/sbin resize2fs $(@D)/new.ext2 >/dev/null && mv $(@D)/new.ext2 $@
lint: deps-lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "run gofmt -w on these"; exit 1; }
	$(GO) vet ./...
	CGO_ENABLED=1 $(GO) vet -tags ego ./cmd/keybroker
	$(GO) run $(STATICCHECK) ./...
	$(GO) run $(STATICCHECK) -tags plainlinux ./init
	$(GO) run $(STATICCHECK) -tags vm ./lab/vm
	$(GO) run ./lab/api -check docs/api.txt
	$(GO) mod verify

# protoc runs in the root, as a file's name in protobuf's registry is its path from there. Each release of protoc writes its version
# into what it makes.
generate: build/protoc/.done
	@$(call protoc,.)
generate-check: build/protoc/.done
	@rm -rf build/generated && mkdir -p build/generated
	@$(call protoc,build/generated)
	@for file in $$({ git ls-files '*.pb.go'; cd build/generated; find * -name '*.pb.go'; } | sort -u); do \
	  diff -u $$file build/generated/$$file || { echo "$$file is not what its .proto gives: run make generate"; exit 1; }; \
	done
define protoc
  test "$$(protoc --version)" = "libprotoc $(PROTOC_VERSION)" || { echo "protoc $(PROTOC_VERSION) is needed; here is $$(protoc --version)"; exit 1; }; \
  PATH=build/protoc:$$PATH protoc -I . --go_out=$1 --go_opt=paths=source_relative \
    --go-grpc_out=$1 --go-grpc_opt=paths=source_relative $$(git ls-files '*.proto')
endef
build/protoc/.done: Makefile | deps-generate
	GOBIN=$(CURDIR)/$(@D) $(GO) install $(GO_PLUGIN)
	GOBIN=$(CURDIR)/$(@D) $(GO) install $(GRPC_PLUGIN)
	@touch $@

api:
	$(GO) run ./lab/api -w docs/api.txt
map:
	$(GO) run ./lab/map -w docs/house.svg
english:
	@$(GO) run ./lab/english
stamp:
	$(GO) run ./lab/stamp
check-date:
	@$(GO) run ./lab/stamp -check

# The deployment on the cluster of the current kubeconfig; E2E=-registry=HOST:PORT for a registry elsewhere.
e2e-k8s: build model deps-test build/helm
	@$(GO) run ./lab/cluster -helm $(CURDIR)/build/helm $(E2E)
build/helm: Makefile
	GOBIN=$(CURDIR)/build $(GO) install $(HELM)
	@touch $@

bench: build model
	$(GO) test -run '^$$' -bench . -benchmem ./attest/dcap ./fs/sefs
	$(GO) run ./lab/volumebench -size $(BENCHSIZE)
	$(GO) run ./lab/releasebench

fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
	  done; done

# Debian packages for what the name says, where they are missing: for build and demo, for PLATFORM=linux, for the tests, for
# test-vm. One after the other, as apt-get runs once at a time.
deps:
	@packaging/deps.sh build
deps-linux: deps
	@packaging/deps.sh linux
deps-lint:
	@packaging/deps.sh lint
deps-generate:
	@packaging/deps.sh generate
deps-test: deps-linux
	@packaging/deps.sh test
deps-vm: deps-linux
	@packaging/deps.sh vm

clean:
	rm -rf bin build
