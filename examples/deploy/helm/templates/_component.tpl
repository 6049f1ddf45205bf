{{/* A component with all that belongs to it: dict "root" $ "component" gateway|app|scheduler|cleanup. */}}
{{- define "dbtcloud.component" -}}
{{- $root := .root }}
{{- $component := .component }}
{{- $values := include "dbtcloud.component.values" . | fromYaml }}
{{- $fullname := printf "%s-%s" (include "dbtcloud.fullname" $root) $component }}
{{- $selector := include "dbtcloud.selector" . }}
{{- $isGateway := eq $component "gateway" }}
{{- $isDoor := has $component (list "gateway" "app") }}
{{- $account := $values.serviceAccount }}
{{- $tls := and $isGateway $root.Values.tls.existingSecret }}
{{- $scaled := and $isDoor $values.autoscaling.enabled }}
{{- if $account.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "dbtcloud.metadata" (dict "root" $root "component" $component "name" (include "dbtcloud.serviceAccount" .) "annotations" $account.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "dbtcloud.metadata" (dict "root" $root "component" $component "name" $fullname "annotations" $values.service.annotations) | nindent 2 }}
spec:
  {{- if $isDoor }}
  type: {{ $values.service.type }}
  {{- with $values.service.clusterIP }}
  clusterIP: {{ . }}
  {{- end }}
  {{- else }}
  # For /metrics alone.
  clusterIP: None
  {{- end }}
  selector:
    {{- $selector | nindent 4 }}
  ports:
    - {name: http, port: {{ $values.service.port }}, targetPort: http}
    {{- if $tls }}
    - {name: https, port: 8443, targetPort: https}
    {{- end }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "dbtcloud.metadata" (dict "root" $root "component" $component "name" $fullname) | nindent 2 }}
spec:
  {{- if not $scaled }}
  replicas: {{ $values.replicaCount }}
  {{- end }}
  revisionHistoryLimit: 5
  selector:
    matchLabels:
      {{- $selector | nindent 6 }}
  strategy:
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  template:
    metadata:
      labels:
        {{- $selector | nindent 8 }}
        {{- with merge (dict) $values.podLabels $root.Values.commonLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- $annotations := merge (dict) $values.podAnnotations $root.Values.commonAnnotations }}
      {{- if not $isGateway }}
      {{- $_ := set $annotations "dbtcloud.dev/runner" (include "dbtcloud.runner.overlay" $root | sha256sum | trunc 16) }}
      {{- end }}
      {{- with $annotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "dbtcloud.serviceAccount" . }}
      automountServiceAccountToken: {{ not $isGateway }}
      enableServiceLinks: false
      {{- include "dbtcloud.pullSecrets" $root | nindent 6 }}
      # It serves on for drainSeconds, lets requests finish for 10 s, and gives up what it holds.
      terminationGracePeriodSeconds: {{ add $root.Values.drainSeconds 30 }}
      securityContext:
        {{- include "dbtcloud.podSecurityContext" (dict "user" 65532) | nindent 8 }}
      {{- with $values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.topologySpreadConstraints }}
      topologySpreadConstraints:
        {{- range . }}
        - {{ toYaml (merge (dict) . (dict "labelSelector" (dict "matchLabels" ($selector | fromYaml)))) | nindent 10 | trim }}
        {{- end }}
      {{- end }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- $migrates := and (not $isGateway) (include "dbtcloud.trial.database" $root) }}
      {{- if or $migrates $values.initContainers }}
      initContainers:
        {{- if $migrates }}
        # The trial's database comes with the same install, after hooks that come before one. Any number may do it.
        - name: migrate
          image: {{ include "dbtcloud.image" (dict "root" $root "image" $root.Values.image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [dbtcloud]
          args: [migrate]
          env:
            {{- include "dbtcloud.server.env" $root | nindent 12 }}
          resources:
            {{- toYaml $root.Values.migrations.resources | nindent 12 }}
          securityContext:
            {{- include "dbtcloud.containerSecurityContext" $root | nindent 12 }}
          volumeMounts:
            {{- include "dbtcloud.server.mounts" $root | nindent 12 }}
        {{- end }}
        {{- with $values.initContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ $component }}
          image: {{ include "dbtcloud.image" (dict "root" $root "image" $root.Values.image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [dbtcloud]
          args: [serve]
          env:
            - {name: DBTCLOUD_ROLE, value: {{ $component }}}
            {{- if $isGateway }}
            - {name: DBTCLOUD_APP_URL, value: {{ include "dbtcloud.app.url" $root | quote }}}
            {{- if $tls }}
            - {name: DBTCLOUD_TLS_LISTEN, value: {{ printf "%s:8443" $root.Values.listenAddress | quote }}}
            - {name: DBTCLOUD_TLS_CERT, value: /etc/dbtcloud/tls/tls.crt}
            - {name: DBTCLOUD_TLS_KEY, value: /etc/dbtcloud/tls/tls.key}
            {{- end }}
            {{- else }}
            {{- include "dbtcloud.server.env" $root | nindent 12 }}
            {{- end }}
            {{- include "dbtcloud.common.env" . | nindent 12 }}
            {{- with $values.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $values.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            - {name: http, containerPort: 8080}
            {{- if $tls }}
            - {name: https, containerPort: 8443}
            {{- end }}
          startupProbe:
            httpGet: {path: /healthz, port: http}
            periodSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: /healthz, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: 3
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          securityContext:
            {{- include "dbtcloud.containerSecurityContext" $root | nindent 12 }}
          volumeMounts:
            {{- if $isGateway }}
            - {name: tmp, mountPath: /tmp}
            {{- else }}
            {{- include "dbtcloud.server.mounts" $root | nindent 12 }}
            {{- end }}
            {{- if $tls }}
            - {name: tls, mountPath: /etc/dbtcloud/tls, readOnly: true}
            {{- end }}
            {{- with $values.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        {{- if $isGateway }}
        - {name: tmp, emptyDir: {}}
        {{- else }}
        {{- include "dbtcloud.server.volumes" $root | nindent 8 }}
        {{- end }}
        {{- if $tls }}
        - {name: tls, secret: {secretName: {{ $root.Values.tls.existingSecret }}, defaultMode: 256}}
        {{- end }}
        {{- with $values.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- if $values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "dbtcloud.metadata" (dict "root" $root "component" $component "name" $fullname) | nindent 2 }}
spec:
  maxUnavailable: {{ $values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- $selector | nindent 6 }}
{{- end }}
{{- if $scaled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "dbtcloud.metadata" (dict "root" $root "component" $component "name" $fullname) | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $fullname }}}
  minReplicas: {{ $values.autoscaling.minReplicas }}
  maxReplicas: {{ $values.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target: {type: Utilization, averageUtilization: {{ $values.autoscaling.targetCPUUtilizationPercentage }}}
{{- end }}
{{- end }}
