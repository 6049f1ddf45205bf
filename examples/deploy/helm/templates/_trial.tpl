{{/*
One copy of a program with a volume, for trials:
dict "root" $ "component" NAME "values" MAP "port" N "args" LIST "env" LIST "mounts" LIST "volumes" LIST "data" PATH "probe" MAP.
*/}}
{{- define "dbtcloud.trial" -}}
{{- $fullname := printf "%s-%s" (include "dbtcloud.fullname" .root) .component }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "dbtcloud.metadata" (dict "root" .root "component" .component "name" $fullname) | nindent 2 }}
spec:
  {{- with .values.clusterIP }}
  clusterIP: {{ . }}
  {{- end }}
  selector:
    {{- include "dbtcloud.selector" . | nindent 4 }}
  ports:
    - {name: tcp, port: {{ .port }}, targetPort: tcp}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  {{- include "dbtcloud.metadata" (dict "root" .root "component" .component "name" $fullname) | nindent 2 }}
spec:
  serviceName: {{ $fullname }}
  replicas: 1
  selector:
    matchLabels:
      {{- include "dbtcloud.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "dbtcloud.selector" . | nindent 8 }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- include "dbtcloud.pullSecrets" .root | nindent 6 }}
      terminationGracePeriodSeconds: 60
      securityContext:
        {{- include "dbtcloud.podSecurityContext" (dict "user" .values.runAsUser) | nindent 8 }}
      containers:
        - name: {{ .component }}
          image: {{ include "dbtcloud.image" (dict "root" .root "image" .values.image) }}
          imagePullPolicy: {{ .values.image.pullPolicy }}
          {{- with .command }}
          command: {{ toJson . }}
          {{- end }}
          args: {{ toJson .args }}
          env:
            {{- toYaml .env | nindent 12 }}
          ports:
            - {name: tcp, containerPort: {{ .port }}}
          readinessProbe:
            {{- toYaml .probe | nindent 12 }}
            periodSeconds: 2
            timeoutSeconds: 5
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          securityContext:
            {{- include "dbtcloud.containerSecurityContext" .root | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: {{ .data }}}
            - {name: tmp, mountPath: /tmp}
            - {name: secret, mountPath: /etc/trial, readOnly: true}
            {{- with .mounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - {name: tmp, emptyDir: {}}
        - name: secret
          secret: {secretName: {{ include "dbtcloud.fullname" .root }}-trial, defaultMode: 256}
        {{- with .volumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumeClaimTemplates:
    - metadata:
        name: data
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .values.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources: {requests: {storage: {{ .values.size }}}}
{{- end }}
