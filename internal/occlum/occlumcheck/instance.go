package occlumcheck

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/rootfs"
)

// Options for [Instance].
type Options struct {
	// OcclumLibc is a directory with the C libraries and loaders that Occlum ships, at any depth, or a file with
	// their SHA-256 as sha256sum prints them. Every libc in the instance must be one of these. If it is empty
	// the check tells a stock library by how it starts threads.
	OcclumLibc string
}

// What a program needs in Occlum.
const (
	goAddressSpace = 1536 << 20 // a Go runtime maps 1225 MiB before its first line
	libosHeap      = 32 << 20   // beside the copy of the program that the LibOS loads from
	leastThreads   = 32         // a Go program with TLS, timers and a few CPUs
)

// InitBudget is the largest size of init in bytes: the LibOS holds all of it in its heap.
const InitBudget = 16 << 20

// inspection is one look at an instance directory.
type inspection struct {
	dir   string
	alone bool // there is nothing but Occlum.json
	o     Options
	conf  *occlumconf.Config
	init  *config.Config // nil where it is missing or wrong
	found Findings
}

// Instance checks the instance directory dir, built or not. An error means that dir could not be looked at.
func Instance(dir string, o Options) (Findings, error) {
	i := &inspection{dir: dir, o: o}
	return i.run(filepath.Join(dir, "Occlum.json"),
		i.initConfig, i.initProgram, i.limits, i.mounts, i.entryPoints, i.metadata, i.environment, i.secrets, i.trust,
		i.volumes, i.libraries, i.built)
}

// File checks an Occlum.json alone, such as a template, for an instance with Sesame's init.
func File(name string) (Findings, error) {
	i := &inspection{dir: os.DevNull, alone: true} // a directory below which there is nothing
	return i.run(name, i.limits, i.mounts, i.entryPoints, i.metadata, i.environment)
}

// run reads the file, without which nothing can be checked, and makes the checks.
func (i *inspection) run(file string, checks ...func() error) (Findings, error) {
	conf, err := occlumconf.Load(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is no Occlum instance: %w", filepath.Dir(file), err)
	case err != nil:
		i.error("Occlum.json", err.Error(), "correct the field; the other checks need it")
		return i.found, nil
	}
	i.conf = conf
	for _, check := range checks {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return i.found, nil
}

func (i *inspection) error(field, problem, write string) {
	i.found = append(i.found, Finding{Error, field, problem, write})
}

func (i *inspection) warn(field, problem, write string) {
	i.found = append(i.found, Finding{Warning, field, problem, write})
}

// initConfig reads the measured config, the one that the build will put into the initfs.
func (i *inspection) initConfig() error {
	inFS := "initfs" + config.Path
	text, err := i.read(inFS, config.MaxSize)
	if err != nil {
		return err
	}
	beside, err := i.read(path.Base(config.Path), config.MaxSize)
	if err != nil {
		return err
	}
	if beside != nil {
		if text != nil && !bytes.Equal(text, beside) {
			i.error(inFS, "differs from the instance's "+path.Base(config.Path)+", so the built initfs is stale",
				"run occlum build -f")
		}
		text, inFS = beside, path.Base(config.Path)
	}
	if text == nil {
		i.error(inFS, "is missing, and init boots nothing without it", "put the measured config there; sesame config check reads it")
		return nil
	}
	parsed, err := config.Parse(text)
	if err != nil {
		var problems config.Problems
		if !errors.As(err, &problems) {
			i.error(inFS, err.Error(), "correct it")
		}
		for _, p := range problems {
			i.error(inFS+": "+p.Key, p.Text, orElse(p.Write, "correct it"))
		}
		return nil
	}
	i.init = parsed
	return nil
}

// initProgram checks what the LibOS loads first.
func (i *inspection) initProgram() error {
	const program = "initfs/bin/init"
	host := i.resolve("initfs", "/bin/init")
	if host == "" {
		i.error(program, "is missing, and the LibOS starts nothing else first", "copy init there")
		return nil
	}
	f, err := os.Stat(host)
	if err != nil {
		return err
	}
	if f.Mode()&0o111 == 0 {
		i.error(program, "is not executable (EACCES)", "chmod 755")
	}
	return i.program("initfs", "/bin/init", host, ProgramOptions{MaxSize: InitBudget, Forbidden: Development()})
}

// program checks that the LibOS can load a program of one of the file systems.
func (i *inspection) program(root, name, host string, o ProgramOptions) error {
	findings, err := Program(host, o)
	if err != nil {
		return err
	}
	for _, f := range findings {
		f.Field = root + name + strings.TrimPrefix(f.Field, host)
		i.found = append(i.found, f)
	}
	loader := interpreterOf(host)
	if loader == "" {
		return nil
	}
	at := i.resolve(root, loader)
	if at == "" {
		i.error(root+loader, "is missing, and "+name+" names it as its loader (ENOENT)",
			"copy Occlum's own loader there, or link the program with the loader that is there")
		return nil
	}
	f, err := os.Stat(at)
	if err == nil && f.Mode()&0o111 == 0 {
		i.error(root+loader, "is the loader of "+name+", and not executable (EACCES)", "chmod 755")
	}
	return err
}

// limits compares sizes and threads with what the programs need.
func (i *inspection) limits() error {
	conf := i.conf
	const field = "Occlum.json: resource_limits."
	host := i.resolve("initfs", "/bin/init")
	isGo := i.alone || host != "" && isGoProgram(host)
	if got := conf.UserSpace(); isGo && got < goAddressSpace {
		name := "user_space_size"
		if conf.ResourceLimits.UserSpaceMax > 0 {
			name = "user_space_max_size"
		}
		i.error(field+name, fmt.Sprintf("is %v, and a Go program reserves 1225 MiB at its start (\"failed to reserve "+
			"page summary memory\")", got), `write "1536MB" or more`)
	}

	programs := []struct{ root, path string }{{"initfs", "/bin/init"}}
	for _, entry := range i.allEntryPoints() {
		programs = append(programs, struct{ root, path string }{"image", entry})
	}
	if i.init != nil && i.init.App != nil {
		programs = append(programs, struct{ root, path string }{"image", i.init.App.Path})
	}
	var largest int64
	name := ""
	for _, p := range programs {
		host := i.resolve(p.root, p.path)
		if host == "" {
			continue
		}
		f, err := os.Stat(host)
		if err != nil {
			return err
		}
		if !f.Mode().IsRegular() {
			continue
		}
		size := f.Size()
		if loader := i.resolve(p.root, interpreterOf(host)); loader != "" {
			if l, err := os.Stat(loader); err == nil {
				size += l.Size()
			}
		}
		if size > largest {
			largest, name = size, p.root+p.path
		}
	}
	if need := occlumconf.Size(largest + libosHeap); conf.KernelHeap() < need {
		megabytes := (need + 1<<20 - 1) >> 20
		setting := "kernel_space_heap_size"
		if conf.ResourceLimits.KernelHeapMax > 0 {
			setting = "kernel_space_heap_max_size"
		}
		i.error(field+setting, fmt.Sprintf("is %v, and the LibOS keeps all of %s in it beside its own 32 MB "+
			"(\"memory allocation failed\")", conf.KernelHeap(), name), fmt.Sprintf(`write "%dMB" or more`, megabytes))
	}
	if n := conf.Threads(); n < leastThreads {
		i.error(field+"max_num_of_threads", fmt.Sprintf("is %d; a process that wants one more is killed with the whole "+
			"enclave", n), fmt.Sprintf("write %d or more", leastThreads))
	}
	if isGo && !slices.ContainsFunc(conf.Env.Default, hasName("GOMAXPROCS")) {
		i.warn("Occlum.json: env.default", "does not set GOMAXPROCS, so the host's number of CPUs decides how many "+
			"threads a Go program starts", `add "GOMAXPROCS=2"`)
	}
	return nil
}

// mounts checks the app stage's file systems, and where secrets would be kept.
func (i *inspection) mounts() error {
	_, _, container := i.conf.Root()
	temporary := container != nil && container.Options != nil && container.Options.Temporary
	const upper = "Occlum.json: mount: /: the writable layer"
	var persistent []string
	if i.init != nil {
		for _, s := range i.init.Secrets {
			if !config.InMemory(s.Path) {
				persistent = append(persistent, s.Path)
			}
		}
	}
	switch {
	case container == nil:
		i.error(upper, "is missing, and mounting the root fails (ENOENT)",
			`add a layer of type sefs with source "./run/mount/__ROOT" and no MAC`)
	case temporary:
	case len(persistent) > 0:
		i.error(upper, "persists on the host, and secrets would be written to it: "+quoted(persistent),
			`write "options": {"temporary": true}, or move the secrets below /dev/shm or /run/secrets`)
	default:
		i.warn(upper, "persists on the host, which can put an older one in its place",
			`write "options": {"temporary": true} unless the application must find its files again`)
	}

	image := i.exists("image")
	if !image && !i.alone {
		i.warn("image", "is not in this directory, so what stands in it was not checked",
			"check the directory that the instance is built in")
	}
	need := func(target, why string) {
		if image && !i.isDir("image", target) {
			i.error("image"+target, "is missing, and "+why, "make the directory")
		}
	}
	need("/proc", "the LibOS mounts there (ENOENT)")
	need("/dev", "the LibOS mounts there (ENOENT)")
	need("/etc", "the LibOS writes hosts and resolv.conf there")
	for _, m := range i.conf.Mount {
		field := "Occlum.json: mount: " + m.Target
		if m.Target != "/" {
			need(m.Target, "Occlum.json mounts there (ENOENT)")
		}
		if m.Type == "hostfs" {
			i.error(field, "is a directory of the host, which reads and changes everything in it", "remove the entry")
		}
		if m.Options == nil {
			continue
		}
		if c := m.Options.CacheSize; c != 0 && (c < 192<<10 || c%4096 != 0 || c > i.conf.KernelHeap()) {
			i.error(field+": cache_size", fmt.Sprintf("is %v", c),
				"write a multiple of 4KB, at least 192KB and less than the kernel heap")
		}
		if d := m.Options.DiskSize; m.Type == "ext2" && d < 5<<30 {
			i.error(field+": disk_size", fmt.Sprintf("is %v", d), `write "5GB" or more`)
		}
	}
	if i.init == nil {
		return nil
	}
	for _, v := range i.init.Volumes {
		need(v.Target, "init mounts a volume there")
	}
	for _, s := range i.init.Secrets {
		if dir := path.Dir(s.Path); dir != "/dev/shm" {
			if strings.HasPrefix(s.Path, "/run/secrets/") {
				dir = "/run/secrets"
			}
			need(dir, "init writes the secret "+s.Name+" there")
		}
		for _, v := range i.init.Volumes {
			if strings.HasPrefix(s.Path, v.Target+"/") {
				i.error(config.Path+": secrets: "+s.Name, "stands in the volume at "+v.Target+", which a write breaks",
					"a path below /dev/shm or /run/secrets")
			}
		}
	}
	return nil
}

// allEntryPoints are the paths that the host may start.
func (i *inspection) allEntryPoints() []string {
	entries := i.conf.EntryPoints
	if i.init != nil && i.init.App != nil && !slices.Contains(entries, i.init.App.EntryPoint) {
		entries = append(slices.Clip(entries), i.init.App.EntryPoint)
	}
	return entries
}

// shells run what their arguments say, and the host chooses the arguments.
var shells = regexp.MustCompile(`^(sh|ash|bash|dash|ksh|zsh|busybox|env|awk|lua|node|perl|php|ruby|python)[0-9.]*$`)

// entryPoints checks that the host can start the launcher and nothing else.
func (i *inspection) entryPoints() error {
	const field = "Occlum.json: entry_points"
	launcher := i.resolve("initfs", "/bin/init")
	if len(i.conf.EntryPoints) == 0 {
		i.error(field, "is empty, so no application can start", "name the launcher's path")
	}
	for _, entry := range i.allEntryPoints() {
		host := i.resolve("image", entry)
		switch {
		case !path.IsAbs(entry) || path.Clean(entry) != entry:
			i.error(field, fmt.Sprintf("%q is not an absolute path (EINVAL)", entry), "write the launcher's path")
		case i.isDir("image", entry) || !i.exists("image") && path.Ext(entry) == "" && path.Dir(entry) == "/":
			i.error(field, fmt.Sprintf("%q is a directory, so the host may start every program below it, with any "+
				"arguments", entry), "write the one path that the host asks for, where the launcher stands")
		case !i.exists("image"):
		case host == "":
			i.error(field, fmt.Sprintf("%q is not in the image (ENOENT)", entry), "copy the launcher (init) there")
		case launcher != "" && sameFile(launcher, host):
		case shells.MatchString(path.Base(entry)) || shells.MatchString(filepath.Base(host)):
			i.error(field, fmt.Sprintf("%q runs whatever its arguments say, and the host chooses them", entry),
				"copy the launcher (init) there and the real program elsewhere")
		case i.init != nil && i.init.App != nil:
			i.error(field, fmt.Sprintf("%q is not the launcher, so nothing checks the host's arguments", entry),
				"copy initfs/bin/init there and the real program to app.path")
		}
	}
	if i.init == nil {
		return nil
	}
	app := i.init.App
	if app == nil {
		i.error(config.Path+": app", "is missing, so the host chooses the program and its arguments",
			`"app": {"path": …, "args": […], "entry_point": …}`)
		return nil
	}
	if !i.exists("image") {
		return nil
	}
	host := i.resolve("image", app.Path)
	if host == "" {
		i.error(config.Path+": app.path", app.Path+" is not in the image", "the real program's path")
		return nil
	}
	f, err := os.Stat(host)
	if err != nil {
		return err
	}
	if !f.Mode().IsRegular() || f.Mode()&0o111 == 0 {
		i.error("image"+app.Path, "is not an executable file (EACCES)", "chmod 755")
		return nil
	}
	if isScript(host) {
		return nil
	}
	return i.program("image", app.Path, host, ProgramOptions{Application: true})
}

// isScript reports whether a file begins with #!, which the LibOS honours.
func isScript(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	mark := make([]byte, 2)
	_, err = io.ReadFull(f, mark)
	return err == nil && string(mark) == "#!"
}

// metadata checks the enclave's identity.
func (i *inspection) metadata() error {
	const field = "Occlum.json: metadata."
	m := i.conf.Metadata
	if m.Debuggable {
		i.error(field+"debuggable", "is true, so the host reads and writes the enclave's memory with a debugger",
			"write false")
	}
	if m.DisableLog != nil && !*m.DisableLog {
		i.error(field+"disable_log", "is false, and the LibOS's debug log prints the keys of volumes",
			"write true, or leave it out together with debuggable false")
	}
	if !m.EnableKSS && (nonZero(m.FamilyID) || nonZero(m.ExtProdID)) {
		i.error(field+"enable_kss", "is false, so family_id and ext_prod_id are dropped and the report has zeros",
			"write true")
	}
	if m.ProductID == 0 {
		i.warn(field+"product_id", "is 0, the number of everything that its signer did not number",
			"give broker and workloads numbers of their own")
	}
	return nil
}

func nonZero(id occlumconf.ID128) bool {
	for _, digits := range []string{id.High, id.Low} {
		if n, err := strconv.ParseUint(strings.TrimPrefix(digits, "0x"), 16, 64); err != nil || n != 0 {
			return true
		}
	}
	return false
}

// hostile lists environment variables through which a host takes over a program or what it trusts.
var hostile = []struct{ names, effect string }{
	{"SESAME_*", "decides what the launcher starts"},
	{"LD_*", "loads code of the host's choice"},
	{"GLIBC_TUNABLES GCONV_PATH LOCPATH NLSPATH MALLOC_*", "changes what the C library loads or checks"},
	{"GODEBUG GOTRACEBACK GOCOVERDIR", "changes what the Go runtime checks and prints"},
	{"SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE REQUESTS_CA_BUNDLE GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
		"chooses whom TLS trusts"},
	{"SSLKEYLOGFILE", "writes the keys of TLS sessions to a file"},
	{"OPENSSL_*", "loads code into OpenSSL"},
	{"PATH IFS ENV BASH_ENV SHELLOPTS", "chooses the programs that a shell runs"},
	{"PYTHON* PERL5* RUBY* NODE_* LUA_* JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS CLASSPATH",
		"makes an interpreter run other code"},
	{"*_proxy *_PROXY", "leads connections through a machine of the host's choice"},
}

// environment checks what of the host's environment reaches programs, and that it fits.
func (i *inspection) environment() error {
	const field = "Occlum.json: env.untrusted"
	ours := config.HostEnvironment()
names:
	for _, name := range i.conf.Env.Untrusted {
		if _, ok := ours[name]; ok {
			continue
		}
		for _, h := range hostile {
			for pattern := range strings.FieldsSeq(h.names) {
				if ok, _ := path.Match(pattern, name); ok {
					i.error(field, fmt.Sprintf("%q lets the host set a variable that %s", name, h.effect),
						"remove it, or set it in env.default")
					continue names
				}
			}
		}
		i.warn(field, fmt.Sprintf("the host chooses the value of %q", name),
			"remove it unless the application treats it as the host's word")
	}
	used := 0
	for _, e := range i.conf.Env.Default {
		used += len(e) + 1 + 8
		if hasName("SESAME_APP")(e) {
			i.error("Occlum.json: env.default", "sets SESAME_APP, which is init's word to the launcher", "remove it")
		}
	}
	if i.init != nil && i.init.App != nil {
		for _, a := range i.init.App.Args {
			used += 2 * (len(a) + 1 + 8) // once as an argument, once in SESAME_APP
		}
	}
	if area := max(int(i.conf.Process.Stack/256), 4096); used > area {
		i.error("Occlum.json: process.default_stack_size", fmt.Sprintf("is %v, which leaves %d bytes for environment "+
			"and arguments, and they take %d (ENOMEM)", i.conf.Process.Stack, area, used),
			fmt.Sprintf(`write "%dMB" or more`, (used*256+1<<20-1)>>20))
	}
	return nil
}

func hasName(name string) func(string) bool {
	return func(entry string) bool { return strings.HasPrefix(entry, name+"=") }
}

// read is the content of a small file of the instance, nil if it does not exist.
func (i *inspection) read(name string, limit int64) ([]byte, error) {
	f, err := os.Open(filepath.Join(i.dir, filepath.FromSlash(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return b, err
}

func (i *inspection) exists(name string) bool {
	_, err := os.Stat(filepath.Join(i.dir, name))
	return err == nil
}

func (i *inspection) isDir(root, name string) bool {
	host := i.resolve(root, name)
	if host == "" {
		return false
	}
	f, err := os.Stat(host)
	return err == nil && f.IsDir()
}

// resolve is the host's path of name in the file system below root of the instance, "" if it does not exist.
// Symbolic links lead where they lead in the enclave.
func (i *inspection) resolve(root, name string) string {
	return rootfs.Resolve(filepath.Join(i.dir, root), name)
}

func sameFile(a, b string) bool {
	left, err := readProgram(a)
	if err != nil {
		return false
	}
	right, err := readProgram(b)
	return err == nil && bytes.Equal(left, right)
}

func isGoProgram(path string) bool {
	_, err := buildinfo.ReadFile(path)
	return err == nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
