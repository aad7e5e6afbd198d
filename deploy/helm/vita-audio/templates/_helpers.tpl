{{- define "vita-audio.fullname" -}}
{{- if contains "vita-audio" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-vita-audio" .Release.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "vita-audio.selector" -}}
app.kubernetes.io/name: vita-audio
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* A name of its own: services, policies and budgets of the servers select the other one. */ -}}
{{- define "vita-audio.gatewaySelector" -}}
app.kubernetes.io/name: vita-audio-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vita-audio.gatewayLabels" -}}
{{ include "vita-audio.gatewaySelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "vita-audio.labels" -}}
{{ include "vita-audio.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* Seconds the launcher gives the engines to load and warm up (ServerOptions.start_limit_s). */ -}}
{{- define "vita-audio.startLimit" -}}
{{ ternary 1800 120 (eq .Values.server.profile "gpu") }}
{{- end }}

{{- /* The preStop hook's longest run, the launcher's drain, and a margin of 15 s. */ -}}
{{- define "vita-audio.neededGrace" -}}
{{ add .Values.drain.settleSeconds .Values.drain.longestStreamSeconds .Values.server.exitTimeoutSeconds 15 }}
{{- end }}

{{- define "vita-audio.grace" -}}
{{ .Values.drain.graceSeconds | default (include "vita-audio.neededGrace" .) }}
{{- end }}

{{- define "vita-audio.places" -}}
{{ add .Values.server.slots .Values.server.queue }}
{{- end }}

{{- /* Kubernetes probes gRPC in plain text only, so a server with TLS is asked by the client inside its container. */ -}}
{{- define "vita-audio.probe" -}}
{{- if .Values.tls.secretName }}
exec:
  command:
    - python3
    - -m
    - vita_client
    - health
    - --url=localhost:{{ .Values.ports.grpc }}
    - --ca=/tls/ca.crt
    {{- if .Values.tls.clientCertificates }}
    - --cert=/tls/tls.crt
    - --key=/tls/tls.key
    {{- end }}
{{- else }}
grpc:
  port: {{ .Values.ports.grpc }}
{{- end }}
{{- end }}

{{- define "vita-audio.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ ALL ]
{{- end }}


{{- /* Container resources with the GPUs of the pod. Call with (list . resources). */ -}}
{{- define "vita-audio.resources" -}}
{{- $root := index . 0 }}
{{- $resources := deepCopy (index . 1) }}
{{- if $root.Values.gpu.count }}
{{- $limits := merge (dict $root.Values.gpu.resourceName ($root.Values.gpu.count | toString)) ($resources.limits | default dict) }}
{{- $_ := set $resources "limits" $limits }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- /* A new server at once; one server fewer a minute, since each takes its streams to their end. */ -}}
{{- define "vita-audio.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [ { type: Percent, value: 100, periodSeconds: 30 } ]
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  policies: [ { type: Pods, value: 1, periodSeconds: 60 } ]
{{- end }}
