{{/* What a process that knows the database alone is told. */}}
{{- define "dbtcloud.database.env" -}}
{{- $db := .Values.externalDatabase }}
- {name: DBTCLOUD_DATA_DIR, value: /data}
- {name: DBTCLOUD_KEY_FILE, value: /etc/dbtcloud/key/key}
- name: DBTCLOUD_DATABASE_URL
  value: {{ include "dbtcloud.database.url" (dict "root" . "host" $db.host "port" $db.port) | quote }}
{{- if $db.listenHost }}
- name: DBTCLOUD_DATABASE_LISTEN_URL
  value: {{ include "dbtcloud.database.url" (dict "root" . "host" $db.listenHost "port" $db.listenPort) | quote }}
{{- end }}
{{- if or (include "dbtcloud.trial.database" .) $db.existingSecret }}
- {name: DBTCLOUD_DATABASE_PASSWORD_FILE, value: /etc/dbtcloud/database/password}
{{- end }}
{{- end }}

{{/* What a server is told. */}}
{{- define "dbtcloud.server.env" -}}
{{- include "dbtcloud.database.env" . }}
- name: DBTCLOUD_ARTIFACTS_URL
  value: {{ include "dbtcloud.artifacts.url" . | quote }}
{{- $secret := ternary (printf "%s-trial" (include "dbtcloud.fullname" .)) .Values.objectStorage.existingSecret (eq (include "dbtcloud.trial.store" .) "true") }}
{{- if $secret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ .Values.objectStorage.existingSecretAccessKeyIdKey }}}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ .Values.objectStorage.existingSecretSecretAccessKeyKey }}}}
{{- end }}
{{- with .Values.publicUrl }}
- {name: DBTCLOUD_PUBLIC_URL, value: {{ . | quote }}}
{{- end }}
- name: DBTCLOUD_AGENT_URL
  value: {{ .Values.runner.agentUrl | default (include "dbtcloud.app.url" .) | quote }}
{{- if .Values.runner.agentCaSecret }}
- {name: DBTCLOUD_AGENT_CA, value: /etc/dbtcloud/agent-ca/{{ .Values.runner.agentCaSecretKey }}}
{{- end }}
- {name: DBTCLOUD_EXECUTOR, value: kubernetes}
- {name: DBTCLOUD_KUBERNETES_NAMESPACE, value: {{ include "dbtcloud.runner.namespace" . | quote }}}
{{- with .Values.runner.installation }}
- {name: DBTCLOUD_KUBERNETES_INSTALLATION, value: {{ . | quote }}}
{{- end }}
- name: DBTCLOUD_KUBERNETES_IMAGE
  value: {{ include "dbtcloud.image" (dict "root" . "image" .Values.runner.image) | quote }}
{{- if or .Values.runner.serviceAccount.name (not .Values.runner.namespacePerAccount) }}
- {name: DBTCLOUD_KUBERNETES_SERVICE_ACCOUNT, value: {{ include "dbtcloud.runner.serviceAccount" . | quote }}}
{{- end }}
{{- with .Values.runner.storageClass }}
- {name: DBTCLOUD_KUBERNETES_STORAGE_CLASS, value: {{ . | quote }}}
{{- end }}
- {name: DBTCLOUD_KUBERNETES_VOLUME_SIZE, value: {{ .Values.runner.volumeSize | quote }}}
- {name: DBTCLOUD_KUBERNETES_POD_OVERLAY_FILE, value: /etc/dbtcloud/runner/pod.yaml}
{{- if .Values.runner.namespacePerAccount }}
- {name: DBTCLOUD_KUBERNETES_NAMESPACE_PER_ACCOUNT, value: "true"}
{{- end }}
{{- end }}

{{/* What every process is told, those of `settings` last: dict "root" $ "component" NAME. */}}
{{- define "dbtcloud.common.env" -}}
- {name: DBTCLOUD_LISTEN, value: {{ printf "%s:8080" .root.Values.listenAddress | quote }}}
- {name: DBTCLOUD_DRAIN_SECONDS, value: {{ .root.Values.drainSeconds | quote }}}
{{- $proxies := .root.Values.trustedProxies }}
{{- if ne .component "gateway" }}{{ $proxies = concat $proxies .root.Values.podNetworks }}{{ end }}
{{- with $proxies }}
- {name: DBTCLOUD_TRUSTED_PROXIES, value: {{ join "," . | quote }}}
{{- end }}
{{- range $key, $value := .root.Values.settings }}
- {name: DBTCLOUD_{{ upper $key }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}

{{- define "dbtcloud.database.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
{{- if or (include "dbtcloud.trial.database" .) .Values.externalDatabase.existingSecret }}
- {name: database, mountPath: /etc/dbtcloud/database, readOnly: true}
{{- end }}
{{- if .Values.externalDatabase.caSecret }}
- {name: database-ca, mountPath: /etc/dbtcloud/database-ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "dbtcloud.database.volumes" -}}
{{- $db := .Values.externalDatabase }}
- {name: data, emptyDir: {}}
- {name: tmp, emptyDir: {}}
{{- $trial := include "dbtcloud.trial.database" . }}
{{- if or $trial $db.existingSecret }}
- name: database
  secret:
    secretName: {{ ternary (printf "%s-trial" (include "dbtcloud.fullname" .)) $db.existingSecret (eq $trial "true") }}
    items: [{key: {{ ternary "password" $db.existingSecretPasswordKey (eq $trial "true") }}, path: password}]
    defaultMode: 256
{{- end }}
{{- with $db.caSecret }}
- {name: database-ca, secret: {secretName: {{ . }}}}
{{- end }}
{{- end }}

{{- define "dbtcloud.server.mounts" -}}
{{- include "dbtcloud.database.mounts" . }}
- {name: key, mountPath: /etc/dbtcloud/key, readOnly: true}
- {name: runner, mountPath: /etc/dbtcloud/runner, readOnly: true}
{{- if .Values.runner.agentCaSecret }}
- {name: agent-ca, mountPath: /etc/dbtcloud/agent-ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "dbtcloud.server.volumes" -}}
{{- $fullname := include "dbtcloud.fullname" . }}
{{- include "dbtcloud.database.volumes" . }}
- name: key
  secret:
    secretName: {{ .Values.keyFile.existingSecret | default (printf "%s-key" $fullname) }}
    items: [{key: {{ .Values.keyFile.existingSecretKey }}, path: key}]
    defaultMode: 256
- name: runner
  configMap: {name: {{ $fullname }}-runner}
{{- with .Values.runner.agentCaSecret }}
- {name: agent-ca, secret: {secretName: {{ . }}}}
{{- end }}
{{- end }}

{{/*
The pod of a command that ends by itself:
dict "root" $ "name" NAME "knows" database|server "serviceAccount" NAME "token" BOOL "resources" MAP.
*/}}
{{- define "dbtcloud.command.spec" -}}
restartPolicy: Never
serviceAccountName: {{ .serviceAccount }}
automountServiceAccountToken: {{ .token }}
enableServiceLinks: false
{{- include "dbtcloud.pullSecrets" .root }}
securityContext:
  {{- include "dbtcloud.podSecurityContext" (dict "user" 65532) | nindent 2 }}
containers:
  - name: {{ .name }}
    image: {{ include "dbtcloud.image" (dict "root" .root "image" .root.Values.image) }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: [dbtcloud]
    args: [{{ .name }}]
    env:
      {{- include (printf "dbtcloud.%s.env" .knows) .root | nindent 6 }}
      {{- include "dbtcloud.common.env" (dict "root" .root "component" .name) | nindent 6 }}
      {{- with .root.Values.defaults.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .root.Values.defaults.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    resources:
      {{- toYaml .resources | nindent 6 }}
    securityContext:
      {{- include "dbtcloud.containerSecurityContext" .root | nindent 6 }}
    volumeMounts:
      {{- include (printf "dbtcloud.%s.mounts" .knows) .root | nindent 6 }}
      {{- with .root.Values.defaults.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  {{- include (printf "dbtcloud.%s.volumes" .knows) .root | nindent 2 }}
  {{- with .root.Values.defaults.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
