package main

import (
	"net/url"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/broker"
)

// readable names the secrets that an enclave's broker takes from its own image, which is measured but not encrypted.
type readable []string

// inImage is what the host can read of what the broker starts with. Outside of an enclave the files are the operator's own.
func (c *command) inImage(first *begun) (found readable) {
	if !c.place.enclave {
		return nil
	}
	if len(first.secrets) > 0 {
		found = append(found, broker.SecretsFile)
	}
	settings := first.policy.Broker
	for _, u := range append([]string{settings.Store.Postgres, first.policy.Trust.Collateral.URL}, settings.Witnesses.At...) {
		if hasPassword(u) {
			found = append(found, "the password in a URL of "+policyName)
			break
		}
	}
	return found
}

// hasPassword reports whether a URL holds one: before its host, or as PostgreSQL's parameter.
func hasPassword(text string) bool {
	u, err := url.Parse(text)
	if err != nil { // PostgreSQL also takes "key=value …"
		return strings.Contains(text, "password=")
	}
	_, set := u.User.Password()
	return set || u.Query().Has("password") || u.Scheme == "" && strings.Contains(text, "password=")
}

// warn says which they are and what to do.
func (r readable) warn(log logrus.FieldLogger) {
	if len(r) == 0 {
		return
	}
	log.WithFields(logrus.Fields{"found": strings.Join(r, ", "), "hint": "Take them out and replace them: the host knows them. " +
		"Name a store in " + policyName + ", and put new secrets into it with \"sesame secret put\"; a database knows a broker by a certificate."}).
		Warn("secrets of this broker stand in its image, which is measured but not encrypted: the host can read them")
}

// mark puts the warning into every line of the start, so that none is read without it.
func (r readable) mark(log *logrus.Logger) {
	if len(r) > 0 {
		log.AddHook(mark{})
	}
}

// unmark ends what mark has begun.
func unmark(log *logrus.Logger) { log.ReplaceHooks(make(logrus.LevelHooks)) }

// mark is a [logrus.Hook].
type mark struct{}

// Levels implements [logrus.Hook].
func (mark) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements [logrus.Hook]. The entry is the line's own copy.
func (mark) Fire(e *logrus.Entry) error {
	e.Data["secrets"] = "readable by the host"
	return nil
}
