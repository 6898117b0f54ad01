package privatefile

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
)

func TestRuleForEveryOwnerAndMode(t *testing.T) {
	root, self, other := user{id: 0}, user{id: 1000, groups: []int{1000, 65534}}, user{id: 1001}
	for name, c := range map[string]struct {
		by           user
		mode         fs.FileMode
		owner, group int
		mend         string // "" if the file is taken
		said         bool
	}{
		"own, no one else":             {by: self, mode: 0o600, owner: 1000, group: 1000},
		"own, only read":               {by: self, mode: 0o400, owner: 1000, group: 1000},
		"own, runs, too":               {by: self, mode: 0o700, owner: 1000, group: 1000},
		"own, all read":                {by: self, mode: 0o644, owner: 1000, group: 1000, mend: "chmod 600 /key"},
		"own, others read only":        {by: self, mode: 0o604, owner: 1000, group: 1000, mend: "chmod 600 /key"},
		"own, others write":            {by: self, mode: 0o602, owner: 1000, group: 1000, mend: "chmod 600 /key"},
		"own, others execute":          {by: self, mode: 0o601, owner: 1000, group: 1000, mend: "chmod 600 /key"},
		"own, group reads":             {by: self, mode: 0o640, owner: 1000, group: 1000, mend: "chmod 600 /key"},
		"own, group writes":            {by: self, mode: 0o620, owner: 1000, group: 1000, mend: "chmod 600 /key"},
		"own, group executes":          {by: self, mode: 0o610, owner: 1000, group: 1000, mend: "chmod 600 /key"},
		"Kubernetes, fsGroup":          {by: self, mode: 0o440, owner: 0, group: 65534, said: true},
		"Kubernetes, its default mode": {by: self, mode: 0o644, owner: 0, group: 65534, mend: "chmod 640 /key"},
		"another's, group writes":      {by: self, mode: 0o660, owner: 0, group: 65534, mend: "chmod 640 /key"},
		"another's, by others' right":  {by: other, mode: 0o644, owner: 0, group: 65534, mend: "chown 1001 /key && chmod 600 /key"},
		"another's, group may not":     {by: other, mode: 0o600, owner: 0, group: 0},
		"root's, to root":              {by: root, mode: 0o600, owner: 0, group: 0},
		"root's, to root, group reads": {by: root, mode: 0o440, owner: 0, group: 65534, mend: "chmod 600 /key"},
		"a user's, to root":            {by: root, mode: 0o600, owner: 1000, group: 1000},
		"a user's, group reads":        {by: root, mode: 0o640, owner: 1000, group: 1000, said: true},
		"a user's, all read":           {by: root, mode: 0o644, owner: 1000, group: 1000, mend: "chmod 600 /key"},
	} {
		remark, err := c.by.judge("/key", file{mode: c.mode, owner: c.owner, group: c.group})
		if (err == nil) != (c.mend == "") || (remark != "") != c.said {
			t.Errorf("%s: remark %q, error %v", name, remark, err)
			continue
		}
		if err == nil {
			continue
		}
		if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(attest.HintOf(err), `"`+c.mend+`"`) || !strings.Contains(err.Error(), "/key") {
			t.Errorf("%s: error %v, hint %q", name, err, attest.HintOf(err))
		}
	}
}

func TestCommandNamesThePathAsOneWord(t *testing.T) {
	for path, want := range map[string]string{
		"/etc/sesame/broker.key": "/etc/sesame/broker.key",
		"my key":                 "'my key'",
		"a'b; reboot":            `'a'\''b; reboot'`,
		"-rf":                    "'./-rf'",
		"$HOME/k":                "'$HOME/k'",
		"":                       "''",
	} {
		if got := word(path); got != want {
			t.Errorf("%q: %s, want %s", path, got, want)
		}
	}
}
