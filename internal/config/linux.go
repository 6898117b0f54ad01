package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/tpm/tpmconfig"
	"github.com/sesame-init/sesame/fs/sefs"
)

// A Platform is the kind of environment that init runs in.
type Platform string

// The platforms.
const (
	Occlum  Platform = "occlum"
	OnLinux Platform = "linux"
)

// SecretsDir is the directory of secret files on Linux: a file system in memory that is never swapped out.
const SecretsDir = "/run/secrets"

// Linux says how the application is started on plain Linux.
type Linux struct {
	// Mode is "exec": the application takes this very process; or "supervise", the default as process 1: init stays,
	// reaps, forwards signals, passes the exit status on, and ends the application when a volume is lost.
	Mode string `json:"mode,omitempty"`
	// UID, GID and Groups are whom the application runs as, by number. Default 65532, 65532 (0 if UID is 0) and none.
	UID    *uint32  `json:"uid,omitempty"`
	GID    *uint32  `json:"gid,omitempty"`
	Groups []uint32 `json:"groups,omitempty"`
	// Capabilities are all that the application may ever have: "CAP_NET_BIND_SERVICE". Default none.
	Capabilities []string `json:"capabilities,omitempty"`
	// Environment is that of the application: "NAME=value", or "NAME" for what the host gives. Default a PATH.
	Environment []string `json:"environment,omitempty"`
	// Directory is the application's working directory at its start. Default /.
	Directory string `json:"directory,omitempty"`
	// VolumeUID is the user, and group, that serves volumes; nothing else should run as it. Default 65533.
	VolumeUID *uint32 `json:"volume_uid,omitempty"`
}

// Modes of [Linux].
const (
	Exec      = "exec"
	Supervise = "supervise"
)

const (
	defaultUID       = 65532
	defaultVolumeUID = 65533
	defaultPath      = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

func (c *Config) completePlatform(bad func(key, text, write string)) {
	switch c.Platform {
	case "":
		c.Platform = Occlum
		fallthrough
	case Occlum:
		if c.Attester == "" {
			c.Attester = attest.SGX
		}
		if c.Attester != attest.SGX {
			bad("attester", fmt.Sprintf("%q is none of Occlum's", c.Attester), `"sgx", or "platform": "linux"`)
		}
		if c.Linux != nil || c.TPM != nil || c.Root.Source != "" || c.Root.MAC != (sefs.MAC{}) {
			bad("platform", `is "occlum", but linux, tpm, root.source or root.mac are given`, `"platform": "linux"`)
		}
	case OnLinux:
		c.completeLinux(bad)
	default:
		bad("platform", fmt.Sprintf("%q is not a platform", c.Platform), `"occlum" or "linux"`)
	}
}

func (c *Config) completeLinux(bad func(key, text, write string)) {
	switch known := onLinux(); {
	case slices.Contains(known, c.Attester):
	case c.Attester != "":
		bad("attester", fmt.Sprintf("%q is not an attester on Linux", c.Attester), oneOf(known))
	case c.Backend != "none":
		bad("attester", "is missing: none is guessed", oneOf(known))
	}
	if c.TPM == nil {
		c.TPM = &tpmconfig.Settings{}
	} else if c.Attester != attest.TPM {
		bad("tpm", fmt.Sprintf("is given, but the attester is %q", c.Attester), `"attester": "tpm"`)
	}
	c.TPM.Check(func(key, text, write string) { bad("tpm."+key, text, write) })
	if c.AppTLS != nil && c.AppTLS.Attested && c.Attester != attest.TDX {
		bad("app_tls.attested", fmt.Sprintf("evidence of type %q has no place in a certificate", c.Attester), "false")
	}
	if (c.Root.Source == "") != (c.Root.MAC == (sefs.MAC{})) || (c.Root.Source == "") != (c.Root.Key == "") {
		bad("root", "on Linux source, key and mac belong together", "all three, or none for the root that is there")
	}
	if c.Linux == nil {
		c.Linux = &Linux{}
	}
	c.Linux.complete(bad)
	c.completeOwners(bad)
}

// onLinux are the attesters outside Occlum, by the evidence that a policy can want.
func onLinux() []attest.EvidenceType {
	return slices.DeleteFunc(policy.Types(), func(t attest.EvidenceType) bool { return t == attest.SGX })
}

// AttesterSettings is the block that has the attester's name, nil if the attester has no settings.
func (c *Config) AttesterSettings() any {
	if c.Attester == attest.TPM {
		return c.TPM
	}
	return nil
}

// completeOwners makes the application's user the owner of what init writes for it.
func (c *Config) completeOwners(bad func(key, text, write string)) {
	own := func(key string, uid, gid **uint32) {
		for name, id := range map[string]**uint32{"uid": uid, "gid": gid} {
			if *id == nil {
				*id = map[string]*uint32{"uid": c.Linux.UID, "gid": c.Linux.GID}[name]
			} else if **id == noID {
				bad(key+"."+name, "is no number of a user or a group", "0 to 4294967294")
			}
		}
	}
	for i := range c.Secrets {
		own(fmt.Sprintf("secrets[%d]", i), &c.Secrets[i].UID, &c.Secrets[i].GID)
	}
	if c.AppTLS != nil {
		own("app_tls", &c.AppTLS.UID, &c.AppTLS.GID)
	}
}

// noID means "as it is" to the system's calls.
const noID = 1<<32 - 1

func (l *Linux) complete(bad func(key, text, write string)) {
	switch l.Mode {
	case "", Exec, Supervise:
	default:
		bad("linux.mode", fmt.Sprintf("%q is not a mode", l.Mode), `"exec" or "supervise"`)
	}
	user, group := uint32(defaultUID), uint32(defaultUID)
	if l.UID == nil {
		l.UID = &user
	}
	if *l.UID == 0 {
		group = 0
	}
	if l.GID == nil {
		l.GID = &group
	}
	if *l.UID == noID || *l.GID == noID || slices.Contains(l.Groups, noID) {
		bad("linux.uid", "4294967295 means to stay who one is", "0 to 4294967294 for uid, gid and groups")
	}
	server := uint32(defaultVolumeUID)
	if l.VolumeUID == nil {
		l.VolumeUID = &server
	}
	if *l.VolumeUID == 0 || *l.VolumeUID == noID {
		bad("linux.volume_uid", fmt.Sprintf("is %d: a process that holds a volume's key does not run as root", *l.VolumeUID),
			"a user of its own, or leave the key out for 65533")
	}
	if *l.VolumeUID == *l.UID {
		bad("linux.volume_uid", "is the application's own: it could reach into the process that holds the volume's key", "another one")
	}
	for i, name := range l.Capabilities {
		if !strings.HasPrefix(name, "CAP_") {
			bad(fmt.Sprintf("linux.capabilities[%d]", i), fmt.Sprintf("%q is no capability", name), `a name such as "CAP_NET_BIND_SERVICE"`)
		}
	}
	for i, entry := range l.Environment {
		name, _, _ := strings.Cut(entry, "=")
		if name == "" || strings.ContainsRune(entry, 0) {
			bad(fmt.Sprintf("linux.environment[%d]", i), "has no name", `"NAME=value" or "NAME"`)
		}
		if strings.HasPrefix(entry, "LD_") && !strings.Contains(entry, "=") {
			bad(fmt.Sprintf("linux.environment[%d]", i), "lets the host choose the application's code", `"`+name+`=value"`)
		}
	}
	if l.Directory == "" {
		l.Directory = "/"
	}
	if !cleanAbsolute(l.Directory) {
		bad("linux.directory", fmt.Sprintf("%q is not an absolute path", l.Directory), "a directory in the root")
	}
}

// EnvironmentOf is the application's environment, of which the host gives what is named without a value.
func (l *Linux) EnvironmentOf(lookup func(string) (string, bool)) []string {
	out := []string{defaultPath}
	for _, entry := range l.Environment {
		name, _, given := strings.Cut(entry, "=")
		if !given {
			value, ok := lookup(name)
			if !ok {
				continue
			}
			entry = name + "=" + value
		}
		out = slices.DeleteFunc(out, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		out = append(out, entry)
	}
	return out
}
