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
