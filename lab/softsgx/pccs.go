package softsgx

import (
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"

	"github.com/sesame-init/sesame/attest/dcap"
)

// PCCS answers as Intel's provisioning certificate caching service does, with this platform's collateral under
// the paths of API versions 3 and 4. Its answers change with [Platform.Reissue]. If Intel's service is odd,
// so is this one: pckcrl and rootcacrl give hexadecimal text unless DER is asked for, crl knows Intel's
// addresses only, and tcbEvaluationDataNumber is ignored.
func (p *Platform) PCCS() http.Handler {
	mux := http.NewServeMux()
	for _, version := range []string{"v3", "v4"} {
		base := "GET /sgx/certification/" + version
		mux.HandleFunc(base+"/tcb", p.serveTCBInfo(version))
		mux.HandleFunc(base+"/qe/identity", p.serveQEIdentity)
		mux.HandleFunc(base+"/pckcrl", p.servePCKCRL)
		mux.HandleFunc(base+"/rootcacrl", p.serveRootCACRL)
		mux.HandleFunc(base+"/crl", p.serveCRL)
		mux.HandleFunc(base+"/pckcert", p.servePCKCertificate)
	}
	return mux
}

const (
	typeJSON  = "application/json"
	typePEM   = "application/x-pem-file"
	typeCRL   = "application/pkix-crl"
	noCache   = "No cache data for this platform."
	badParams = "Invalid request parameters."
)

func answer(w http.ResponseWriter, contentType string, body []byte, headers ...string) {
	for i := 0; i < len(headers); i += 2 {
		w.Header().Set(headers[i], headers[i+1])
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(body)
}

// headerChain is a chain as a header has it: PEM with percent for all that is not alphanumeric, spaces too.
func headerChain(chain []byte) string {
	return strings.ReplaceAll(url.QueryEscape(string(chain)), "+", "%20")
}

func (p *Platform) serveTCBInfo(version string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fmspc, err := hex.DecodeString(r.FormValue("fmspc"))
		switch {
		case err != nil || len(fmspc) != len(p.hw.FMSPC):
			http.Error(w, badParams, http.StatusBadRequest)
			return
		case [6]byte(fmspc) != p.hw.FMSPC:
			http.Error(w, noCache, http.StatusNotFound)
			return
		}
		p.mu.Lock()
		body, chain, header := p.collateral.TCBInfo, p.collateral.TCBInfoChain, "TCB-Info-Issuer-Chain"
		if version == "v3" {
			body, header = p.tcbInfoV2, "SGX-TCB-Info-Issuer-Chain"
		}
		p.mu.Unlock()
		answer(w, typeJSON, body, header, headerChain(chain))
	}
}

func (p *Platform) serveQEIdentity(w http.ResponseWriter, _ *http.Request) {
	c := p.Collateral()
	answer(w, typeJSON, c.QEIdentity, "SGX-Enclave-Identity-Issuer-Chain", headerChain(c.QEIdentityChain))
}

func (p *Platform) servePCKCRL(w http.ResponseWriter, r *http.Request) {
	ca := strings.ToLower(r.FormValue("ca"))
	switch {
	case ca != dcap.PlatformCA && ca != dcap.ProcessorCA:
		http.Error(w, badParams, http.StatusBadRequest)
		return
	case ca != p.hw.ca():
		http.Error(w, noCache, http.StatusNotFound)
		return
	}
	c := p.Collateral()
	chain := headerChain(c.PCKCRLChain)
	if r.FormValue("encoding") == "der" {
		answer(w, typeCRL, c.PCKCRL, "SGX-PCK-CRL-Issuer-Chain", chain)
		return
	}
	answer(w, typePEM, []byte(hex.EncodeToString(c.PCKCRL)), "SGX-PCK-CRL-Issuer-Chain", chain)
}

func (p *Platform) serveRootCACRL(w http.ResponseWriter, _ *http.Request) {
	answer(w, typeCRL, []byte(hex.EncodeToString(p.Collateral().RootCACRL)))
}

func (p *Platform) serveCRL(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("uri") != rootCRLAddress {
		http.Error(w, badParams, http.StatusBadRequest)
		return
	}
	answer(w, typeCRL, p.Collateral().RootCACRL)
}

// servePCKCertificate gives the platform's only PCK certificate to anyone who names its QE, the only platform it
// has; Intel's service selects by TCB too.
func (p *Platform) servePCKCertificate(w http.ResponseWriter, r *http.Request) {
	qeid := r.FormValue("qeid")
	if qeid == "" || r.FormValue("pceid") == "" {
		http.Error(w, badParams, http.StatusBadRequest)
		return
	}
	if !strings.EqualFold(qeid, hex.EncodeToString(p.hw.QEID[:])) {
		http.Error(w, noCache, 461) // Intel's: the platform is unknown
		return
	}
	tcbm := append(append([]byte{}, p.hw.CPUSVN[:]...), byte(p.hw.PCESVN), byte(p.hw.PCESVN>>8))
	answer(w, typePEM, pemChain(p.certs.pck),
		"SGX-PCK-Certificate-Issuer-Chain", headerChain(pemChain(p.certs.ca, p.certs.root)),
		"SGX-TCBm", upperHex(tcbm),
		"SGX-FMSPC", upperHex(p.hw.FMSPC[:]),
		"SGX-PCK-Certificate-CA-Type", p.hw.ca())
}
