package config_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/config"
)

const onLinux = `{
  "platform": "linux", "attester": "tpm",
  "backend": "grpc-ratls",
  "grpc_ratls": {"servers": ["127.0.0.1:5000"], "protocol": "session",
    "broker_key": "0101010101010101010101010101010101010101010101010101010101010101"},
  "tpm": {"config_pcr": 12, "endorsement_key": true},
  "root": {},
  "app": {"path": "/usr/sbin/nginx", "args": ["-g", "daemon off;"]},
  "volumes": [{"source": "/srv/site", "target": "/var/www", "key": "site_key", "mac": "00-01-02-03-04-05-06-07-08-09-0a-0b-0c-0d-0e-0f"}],
  "secrets": [{"name": "tls_key", "path": "/run/secrets/tls.key", "mode": "0440", "uid": 33}],
  "linux": {"mode": "supervise", "uid": 33, "gid": 33, "capabilities": ["CAP_NET_BIND_SERVICE"], "environment": ["TZ", "LANG=C"]},
  "collateral": {}
}`

func TestConfigOfLinuxIsCompleted(t *testing.T) {
	c, err := config.Parse([]byte(onLinux))
	if err != nil {
		t.Fatal(err)
	}
	if c.Platform != config.OnLinux || *c.Linux.VolumeUID != 65533 || c.Linux.Directory != "/" {
		t.Errorf("config is %+v, %+v", c, c.Linux)
	}
	env := c.Linux.EnvironmentOf(func(name string) (string, bool) { return "UTC", name == "TZ" })
	if len(env) != 3 || !slices.Contains(env, "TZ=UTC") || !slices.Contains(env, "LANG=C") || !strings.HasPrefix(env[0], "PATH=") {
		t.Errorf("environment is %q", env)
	}
	if env := c.Linux.EnvironmentOf(func(string) (string, bool) { return "", false }); len(env) != 2 {
		t.Errorf("environment without the host's is %q", env)
	}
}

func TestApplicationIsNotRootUnlessTheConfigSaysSo(t *testing.T) {
	for _, c := range []struct {
		linux                      string
		uid, gid, fileUID, fileGID int
	}{
		{`{}`, 65532, 65532, 33, 65532},
		{`{"uid": 0}`, 0, 0, 33, 0},
		{`{"uid": 0, "gid": 7}`, 0, 7, 33, 7},
		{`{"uid": 1000}`, 1000, 65532, 33, 65532},
		{`{"uid": 1000, "gid": 0}`, 1000, 0, 33, 0},
	} {
		before, _, _ := strings.Cut(onLinux, `"linux": `)
		got, err := config.Parse([]byte(before + `"linux": ` + c.linux + `, "collateral": {}}`))
		if err != nil {
			t.Fatal(err)
		}
		if int(*got.Linux.UID) != c.uid || int(*got.Linux.GID) != c.gid {
			t.Errorf("%s: the application is %d:%d, want %d:%d", c.linux, *got.Linux.UID, *got.Linux.GID, c.uid, c.gid)
		}
		if uid, gid := got.Secrets[0].Owner(); uid != c.fileUID || gid != c.fileGID {
			t.Errorf("%s: the file belongs to %d:%d, want %d:%d", c.linux, uid, gid, c.fileUID, c.fileGID)
		}
	}
}

func TestConfigOfLinuxThatMeansTooLittleIsRefused(t *testing.T) {
	for _, c := range []struct{ from, to, key string }{
		{`"attester": "tpm",`, ``, "attester"},
		{`"backend": "grpc-ratls"`, `"backend": "maa"`, "maa"},
		{`"backend": "grpc-ratls"`, `"maa": {}, "backend": "maa"`, "attester"},
		{`"attester": "tpm"`, `"attester": "sgx"`, "attester"},
		{`"attester": "tpm"`, `"attester": "snp"`, "tpm"},
		{`"platform": "linux"`, `"platform": "occlum"`, "platform"},
		{`"platform": "linux"`, `"platform": "windows"`, "platform"},
		{`"config_pcr": 12`, `"config_pcr": 7`, "tpm.config_pcr"},
		{`"config_pcr": 12`, `"config_pcr": 23`, "tpm.config_pcr"},
		{`"config_pcr": 12`, `"config_pcr": 12, "pcrs": [0]`, "tpm.config_pcr"},
		{`"config_pcr": 12`, `"pcrs": [24]`, "tpm.pcrs[0]"},
		{`/run/secrets/tls.key`, `/etc/tls.key`, "secrets[0].path"},
		{`/run/secrets/tls.key`, `/dev/shm/tls.key`, "secrets[0].path"},
		{`"root": {}`, `"root": {"source": "/srv/root"}`, "root"},
		{`"args": [`, `"entry_point": "/x", "args": [`, "app.entry_point"},
		{`"mode": "supervise"`, `"mode": "fork"`, "linux.mode"},
		{`"uid": 33, "gid"`, `"uid": 65533, "gid"`, "linux.volume_uid"},
		{`"uid": 33, "gid"`, `"uid": 4294967295, "gid"`, "linux.uid"},
		{`"gid": 33`, `"gid": 4294967295`, "linux.uid"},
		{`"gid": 33`, `"gid": 33, "groups": [4294967295]`, "linux.uid"},
		{`"0440", "uid": 33`, `"0440", "uid": 4294967295`, "secrets[0].uid"},
		{`CAP_NET`, `NET`, "linux.capabilities[0]"},
		{`"TZ"`, `"LD_PRELOAD"`, "linux.environment[0]"},
		{`"TZ"`, `"=x"`, "linux.environment[0]"},
		{`"protocol": "session"`, `"protocol": "legacy"`, "grpc_ratls.protocol"},
	} {
		text := strings.Replace(onLinux, c.from, c.to, 1)
		if text == onLinux {
			t.Fatalf("%s is not there", c.from)
		}
		_, err := config.Parse([]byte(text))
		var problems config.Problems
		if !errors.As(err, &problems) || !slices.ContainsFunc(problems, func(p config.Problem) bool { return p.Key == c.key }) {
			t.Errorf("%s: error is %v, want a problem with %s", c.to, err, c.key)
		}
	}
}
