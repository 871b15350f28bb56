{{/* Names are fixed, not those of the release: the CRDs allow one installation in a cluster. */}}
{{- define "podgraft.labels" -}}
app.kubernetes.io/name: podgraft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "podgraft.image" -}}
{{ .image.repository }}:{{ .image.tag | default .appVersion }}
{{- end }}
{{/* Keys are read at start: a change of them is a change of the pods. */}}
{{- define "podgraft.trust.annotation" -}}
podgraft.dev/trust: {{ toJson .Values.trust | sha256sum }}
{{- end }}
{{- define "podgraft.trust.env" -}}
- {name: PODGRAFT_TRUST_DIR, value: /etc/podgraft/trust}
- {name: PODGRAFT_ALLOW_UNSIGNED, value: {{ .Values.trust.allowUnsigned | quote }}}
{{- end }}
{{- define "podgraft.trust.mount" -}}
- {name: trust, mountPath: /etc/podgraft/trust, readOnly: true}
{{- end }}
{{- define "podgraft.trust.volume" -}}
- name: trust
  configMap: {name: podgraft-trust}
{{- end }}
