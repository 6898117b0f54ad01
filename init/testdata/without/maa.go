package maa

import "github.com/sesame-init/sesame/attest"

type Key struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Blob    string `json:"blob,omitempty"`
}

func (Key) Validate() error { return nil }

type AAD struct {
	Mode       string        `json:"mode"`
	Tenant     string        `json:"tenant,omitempty"`
	ClientID   string        `json:"client_id,omitempty"`
	File       string        `json:"file,omitempty"`
	Authority  string        `json:"authority,omitempty"`
	Metadata   string        `json:"metadata,omitempty"`
	Credential attest.Secret `json:"-"`
}

func (*AAD) Validate(bool) error { return nil }

func CheckURL(string) error { return nil }

const (
	MaxReportData = 256
	TokenFile     = "token"
	QuoteFile     = "quote_base64"
)
