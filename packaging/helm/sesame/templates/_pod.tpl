{{- /* The parts that both enclaves' pods have. Each takes a dict with root (.), image, and what it names. */ -}}

{{- define "sesame.image" -}}
{{ .root.Values.registry }}/{{ .image }}:{{ .root.Values.tag }}
{{- end }}

{{- define "sesame.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
{{- if eq .root.Values.mode "sgx" }}
  runAsNonRoot: true
  runAsUser: 65534
  runAsGroup: 65534
  fsGroup: 65534
  seccompProfile: {type: RuntimeDefault}
{{- else }}
  # The simulator is the LibOS: it answers system call 363, which a seccomp profile refuses before it sees it.
  runAsUser: 0
  runAsGroup: 0
  seccompProfile: {type: Unconfined}
{{- end }}
initContainers:
  # Occlum locks its images and volumes and writes to them: each pod has a copy of its own.
  - name: stage
    image: {{ include "sesame.image" . }}
    imagePullPolicy: {{ .root.Values.pullPolicy }}
    command: [sesame, pod, stage, ., /stage]
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    resources:
      requests: {cpu: 50m, memory: 32Mi}
      limits: {cpu: 500m, memory: 128Mi}
    volumeMounts:
      - {name: instance, mountPath: /stage}
{{- if .store }}
      - {name: store, mountPath: /stage/run}
{{- end }}
volumes:
  - {name: instance, emptyDir: {}}
  - {name: tmp, emptyDir: {}}
{{- if and .store .root.Values.broker.storage }}
  - {name: store, persistentVolumeClaim: {claimName: init-ra-server-store}}
{{- else if .store }}
  - {name: store, emptyDir: {}}
{{- end }}
{{- if eq .root.Values.mode "simulator" }}
{{ include "sesame.platform" .root | indent 2 }}
{{- end }}
{{- end }}

{{- define "sesame.annotations" -}}
{{- if eq .Values.mode "sgx" }}
annotations:
  # The device plugin's webhook mounts the socket of aesmd, which makes quotes outside of the pod.
  sgx.intel.com/quote-provider: aesmd
{{- end }}
{{- end }}

{{- define "sesame.container" -}}
image: {{ include "sesame.image" . }}
imagePullPolicy: {{ .root.Values.pullPolicy }}
securityContext:
  readOnlyRootFilesystem: true
{{- if eq .root.Values.mode "sgx" }}
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
{{- else }}
  # The simulator makes namespaces, mounts file systems, and follows the system calls of its programs.
  allowPrivilegeEscalation: true
  capabilities:
    drop: [ALL]
    add: [SYS_ADMIN, SYS_PTRACE, SYS_CHROOT, DAC_OVERRIDE, CHOWN, FOWNER, SETUID, SETGID, KILL, MKNOD]
{{- end }}
resources:
  requests: {{ toJson .resources.requests }}
  limits:
{{ toYaml .resources.limits | indent 4 }}
{{- if eq .root.Values.mode "sgx" }}
    sgx.intel.com/epc: {{ .epc }}
    sgx.intel.com/enclave: 1
    sgx.intel.com/provision: 1
{{- end }}
volumeMounts:
  - {name: instance, mountPath: /opt/sesame/{{ .image }}}
{{- if .store }}
  - {name: store, mountPath: /opt/sesame/{{ .image }}/run}
{{- end }}
  - {name: tmp, mountPath: /tmp}
{{- if eq .root.Values.mode "simulator" }}
  - {name: platform, mountPath: /platform, readOnly: true}
{{- end }}
{{- end }}

{{- define "sesame.run" -}}
[sesame, pod, run, --qcnl=/tmp/qcnl.conf, --pccs=$(PCCS_URL), --cpus={{ .cpus }}, --, occlum, run
{{- if eq .root.Values.mode "simulator" }}, --platform=/platform{{ end }}
{{- end }}

{{- define "sesame.env" -}}
- {name: PCCS_URL, value: {{ .root.Values.pccsURL | quote }}}
{{- if .broker }}
- {name: OCCLUM_INIT_RA_KMS_SERVER, value: {{ .broker | quote }}}
{{- end }}
- {name: QCNL_CONF_PATH, value: /tmp/qcnl.conf}
- {name: SGX_AESM_ADDR, value: "1"}
{{- end }}

{{- define "sesame.platform" -}}
- name: platform
  secret:
    secretName: {{ .Values.platformSecret }}
    defaultMode: 288
    items:
{{- range list "attestation.key" "device.key" "pck.key" "pck.pem" "pck_ca.key" "pck_ca.pem" "platform.json" "root_ca.key" "root_ca.pem" "tcb_signing.key" "tcb_signing.pem" }}
      - {key: {{ . }}, path: {{ . }}}
{{- end }}
{{- range list "pck_crl.der" "pck_crl_chain.pem" "qe_chain.pem" "qe_identity.json" "root_ca.pem" "root_ca_crl.der" "tcb_chain.pem" "tcb_info.json" "tcb_info_v2.json" }}
      - {key: collateral.{{ . }}, path: collateral/{{ . }}}
{{- end }}
{{- end }}
