{{- define "herder.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "herder.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}
{{- else -}}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "herder.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "herder.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/version: {{ default .Chart.AppVersion .Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "herder.selector" . }}
{{- end -}}

{{- define "herder.serviceAccount" -}}
{{- default (ternary (include "herder.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Everything that a pod of ours has in common: nothing that it could break out with, and a read-only root. */}}
{{- define "herder.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "herder.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "herder.env" -}}
- name: HERDER_CONFIG
  value: /etc/herder/herder.toml
{{- range $name, $ref := .Values.secrets }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $ref.secret }}
      key: {{ $ref.key }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "herder.mounts" -}}
- name: config
  mountPath: /etc/herder
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with .Values.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* `config` is the ConfigMap's name. */}}
{{- define "herder.volumes" -}}
- name: config
  configMap:
    name: {{ .config }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- with .root.Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* `herder setup`, before the pod's own container. */}}
{{- define "herder.setup" -}}
{{- if .Values.setup -}}
initContainers:
  - name: setup
    image: {{ include "herder.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [herder, setup]
    env:
      {{- include "herder.env" . | nindent 6 }}
    resources:
      requests: { cpu: 50m, memory: 64Mi }
      limits: { memory: 256Mi }
    securityContext:
      {{- include "herder.containerSecurity" . | nindent 6 }}
    volumeMounts:
      {{- include "herder.mounts" . | nindent 6 }}
{{- end -}}
{{- end -}}

{{/* The config, parsed, so that the chart can count with it. */}}
{{- define "herder.parsed" -}}
{{- $parsed := fromToml .Values.config -}}
{{- with $parsed.Error -}}{{ fail (printf "config is not valid TOML: %s" .) }}{{- end -}}
{{- toJson $parsed -}}
{{- end -}}

{{/* How many connections jobs may hold. One of each server's budget of 3 and more is kept for inspection. */}}
{{- define "herder.connections" -}}
{{- $config := include "herder.parsed" . | fromJson -}}
{{- $servers := $config.servers | default dict -}}
{{- if .Values.autoscaling.connections -}}
{{- $kept := len $servers -}}
{{- max 1 (sub (int .Values.autoscaling.connections) $kept) -}}
{{- else -}}
{{- $sum := 0 -}}
{{- range $name, $server := $servers -}}
{{- $budget := $server.budget | default "50%" -}}
{{- if kindIs "string" $budget -}}
{{- if not (regexMatch "^[0-9]+$" $budget) -}}
{{- fail (printf "the budget of servers.%s is %s of what only the server knows: set autoscaling.connections to the sum of the budgets that `herder check` shows" $name $budget) -}}
{{- end -}}
{{- end -}}
{{- $jobs := int $budget -}}
{{- if ge $jobs 3 -}}{{- $jobs = sub $jobs 1 -}}{{- end -}}
{{- $sum = add $sum $jobs -}}
{{- end -}}
{{- if not $sum -}}{{- fail "config has no [servers.NAME]: set autoscaling.connections" -}}{{- end -}}
{{- $sum -}}
{{- end -}}
{{- end -}}

{{/* How many workers can have something to do at a time. */}}
{{- define "herder.maxReplicas" -}}
{{- $config := include "herder.parsed" . | fromJson -}}
{{- $runner := $config.runner | default dict -}}
{{/* The least that a job takes. Where Alembic itself must run, and not its plan, it takes two. */}}
{{- $perJob := ternary 2 1 (eq ($runner.kind | default "") "command") -}}
{{- $connections := include "herder.connections" . | int -}}
{{- $jobs := max 1 (div $connections $perJob) -}}
{{- $concurrency := int .Values.worker.concurrency -}}
{{/* What a worker takes of the budget besides its jobs. */}}
{{- $control := ternary 2 0 .Values.autoscaling.controlDatabaseOnServer -}}
{{- $perWorker := add (mul $concurrency $perJob) $control -}}
{{- $most := max 1 (div (add $connections $perWorker -1) $perWorker) -}}
{{- $wanted := int .Values.autoscaling.maxReplicas -}}
{{- if gt $wanted (int $most) -}}
{{- fail (printf "autoscaling.maxReplicas %d is more than can work: the budget lets %d jobs run at a time, and a worker runs %d%s. At most %d; or raise the budget, or lower worker.concurrency" $wanted (int $jobs) $concurrency (ternary " and has 2 connections to the control database" "" .Values.autoscaling.controlDatabaseOnServer) (int $most)) -}}
{{- end -}}
{{- $max := default (int $most) $wanted -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int $max) -}}
{{- fail (printf "autoscaling.minReplicas %d is more than the most workers that can work: %d" (int .Values.autoscaling.minReplicas) (int $max)) -}}
{{- end -}}
{{- $max -}}
{{- end -}}
