package maa

import "testing"

func TestACredentialOfTheHostIsThatOfTheMode(t *testing.T) {
	host := map[string]string{
		"AZURE_FEDERATED_TOKEN": "host-federated", "AZURE_FEDERATED_TOKEN_FILE": "/host/token",
		"AZURE_CLIENT_SECRET": "host-secret", "AZURE_ACCESS_TOKEN": "host-access",
	}
	getenv := func(name string) string { return host[name] }
	for mode, want := range map[string]string{"workload-identity": "host-federated", "client-secret": "host-secret", "token": "host-access"} {
		b := block{AAD: AAD{Mode: mode}}
		b.Apply(getenv)
		if a := b.AAD; a.File != "" || string(a.Credential.Expose()) != want {
			t.Errorf("%s: file %q, credential %q", mode, a.File, a.Credential.Expose())
		}
		b = block{AAD: AAD{Mode: mode, File: "/measured"}}
		b.Apply(getenv)
		if a := b.AAD; a.File != "/measured" || a.Credential.Len() != 0 {
			t.Errorf("%s: the host replaces the file: %q, %q", mode, a.File, a.Credential.Expose())
		}
	}
	delete(host, "AZURE_FEDERATED_TOKEN")
	b := block{AAD: AAD{Mode: "workload-identity"}}
	b.Apply(getenv)
	if a := b.AAD; a.File != "/host/token" || a.Credential.Len() != 0 {
		t.Errorf("the file: %q, %q", a.File, a.Credential.Expose())
	}
}
