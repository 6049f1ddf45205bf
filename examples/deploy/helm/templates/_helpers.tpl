{{/* Names. */}}
{{- define "dbtcloud.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "dbtcloud.fullname" -}}
{{- $name := include "dbtcloud.name" . -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What selects the pods of a component: dict "root" $ "component" NAME. */}}
{{- define "dbtcloud.selector" -}}
app.kubernetes.io/name: {{ include "dbtcloud.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* metadata of an object: dict "root" $ "component" NAME "name" NAME ["namespace" NAME "everywhere" BOOL "labels" MAP "annotations" MAP]. */}}
{{- define "dbtcloud.metadata" -}}
name: {{ .name }}
{{- if not .everywhere }}
namespace: {{ .namespace | default .root.Release.Namespace }}
{{- end }}
labels:
  {{- include "dbtcloud.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
  {{- with merge (dict) (.labels | default dict) .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* An image's reference: dict "root" $ "image" MAP. */}}
{{- define "dbtcloud.image" -}}
{{- $registry := .root.Values.global.imageRegistry | default .image.registry -}}
{{- $name := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") -}}
{{- if .image.digest }}{{ printf "%s@%s" $name .image.digest }}
{{- else }}{{ printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) }}{{ end }}
{{- end }}

{{- define "dbtcloud.pullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A component's settings: its block over the defaults; what it says counts, also false, 0 and nothing. */}}
{{- define "dbtcloud.over" -}}
{{- $merged := deepCopy .under }}
{{- range $key, $value := .over }}
{{- $below := get $merged $key }}
{{- $whole := has $key (list "affinity" "nodeSelector" "resources") }}
{{- if and (kindIs "map" $value) (kindIs "map" $below) (not $whole) }}
{{- $_ := set $merged $key (include "dbtcloud.over" (dict "under" $below "over" $value) | fromYaml) }}
{{- else }}
{{- $_ := set $merged $key $value }}
{{- end }}
{{- end }}
{{- toYaml $merged }}
{{- end }}

{{- define "dbtcloud.component.values" -}}
{{ include "dbtcloud.over" (dict "under" .root.Values.defaults "over" (index .root.Values .component)) }}
{{- end }}

{{- define "dbtcloud.serviceAccount" -}}
{{- $account := (include "dbtcloud.component.values" . | fromYaml).serviceAccount -}}
{{ $account.name | default (ternary (printf "%s-%s" (include "dbtcloud.fullname" .root) .component) "default" $account.create) }}
{{- end }}

{{- define "dbtcloud.runner.serviceAccount" -}}
{{- $account := .Values.runner.serviceAccount -}}
{{ $account.name | default (ternary (printf "%s-runner" (include "dbtcloud.fullname" .)) "default" $account.create) }}
{{- end }}

{{- define "dbtcloud.runner.namespace" -}}
{{ .Values.runner.namespace | default .Release.Namespace }}
{{- end }}

{{/* Host of a service: its fixed address where it has one, otherwise its name. dict "root" $ "name" NAME "clusterIP" IP. */}}
{{- define "dbtcloud.host" -}}
{{ .clusterIP | default (printf "%s.%s.svc" .name .root.Release.Namespace) }}
{{- end }}

{{- define "dbtcloud.app.url" -}}
{{- $service := (include "dbtcloud.component.values" (dict "root" . "component" "app") | fromYaml).service -}}
{{- $host := include "dbtcloud.host" (dict "root" . "name" (printf "%s-app" (include "dbtcloud.fullname" .)) "clusterIP" $service.clusterIP) -}}
http://{{ $host }}:{{ $service.port }}
{{- end }}

{{/* What runs beside the components is the trial's when it is on and nothing external is named. */}}
{{- define "dbtcloud.trial.database" -}}
{{- if and .Values.postgresql.enabled (not .Values.externalDatabase.host) }}true{{ end }}
{{- end }}

{{- define "dbtcloud.trial.store" -}}
{{- if and .Values.seaweedfs.enabled (not .Values.objectStorage.bucket) (not .Values.objectStorage.url) }}true{{ end }}
{{- end }}

{{/* dict "root" $ "host" HOST "port" PORT. */}}
{{- define "dbtcloud.database.url" -}}
{{- $root := .root -}}
{{- $db := $root.Values.externalDatabase -}}
{{- if include "dbtcloud.trial.database" $root -}}
postgres://dbtcloud@{{ include "dbtcloud.host" (dict "root" $root "name" (printf "%s-postgresql" (include "dbtcloud.fullname" $root)) "clusterIP" $root.Values.postgresql.clusterIP) }}:5432/dbtcloud?sslmode=disable
{{- else -}}
{{- $host := required "externalDatabase.host is missing: name a PostgreSQL, or set postgresql.enabled for a trial" .host -}}
postgres://{{ urlquery $db.user }}@{{ $host }}:{{ .port }}/{{ urlquery $db.database }}?sslmode={{ $db.sslmode }}
{{- if $db.caSecret }}&sslrootcert=/etc/dbtcloud/database-ca/{{ $db.caSecretKey }}{{ end }}
{{- range $name, $value := $db.parameters }}&{{ $name }}={{ urlquery $value | replace "+" "%20" }}{{ end }}
{{- end -}}
{{- end }}

{{- define "dbtcloud.artifacts.url" -}}
{{- $store := .Values.objectStorage -}}
{{- if $store.url }}{{ $store.url }}
{{- else if include "dbtcloud.trial.store" . -}}
s3://artifacts?region=us-east-1&endpoint=http://{{ include "dbtcloud.host" (dict "root" . "name" (printf "%s-seaweedfs" (include "dbtcloud.fullname" .)) "clusterIP" .Values.seaweedfs.clusterIP) }}:8333
{{- else -}}
{{- $bucket := required "objectStorage.bucket is missing: name a bucket (or objectStorage.url), or set seaweedfs.enabled for a trial" $store.bucket -}}
{{- $parameters := list -}}
{{- with $store.region }}{{ $parameters = append $parameters (printf "region=%s" .) }}{{ end -}}
{{- with $store.endpoint }}{{ $parameters = append $parameters (printf "endpoint=%s" .) }}{{ end -}}
{{- if kindIs "bool" $store.pathStyle }}{{ $parameters = append $parameters (printf "path_style=%v" $store.pathStyle) }}{{ end -}}
s3://{{ $bucket }}{{ with $store.prefix }}/{{ . }}{{ end }}{{ with $parameters }}?{{ join "&" . }}{{ end }}
{{- end -}}
{{- end }}

{{- define "dbtcloud.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .user }}
fsGroup: {{ .user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "dbtcloud.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
