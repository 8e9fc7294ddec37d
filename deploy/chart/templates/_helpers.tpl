{{- /* The shipped configuration with this release's values. */ -}}
{{- define "darkroom.serveConfig" -}}
{{- $config := .Files.Get "serve_config.yaml" | fromYaml -}}
{{- $application := first $config.applications -}}
{{- $_ := set $application.args.stages "router" .Values.router -}}
{{- $_ = set $application "args" (mergeOverwrite $application.args (deepCopy .Values.args)) -}}
{{- /* every node with a replica answers, on its pod's address; keys and the NetworkPolicy say to whom */ -}}
{{- $_ = set $config "proxy_location" "EveryNode" -}}
{{- $_ = set $config.http_options "host" "0.0.0.0" -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "darkroom.labels" -}}
app.kubernetes.io/name: darkroom
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* A Ray pod. Of a dict: root, name, and of the group cpu, memory, accelerator, nodeSelector. */ -}}
{{- define "darkroom.pod" -}}
metadata:
  labels:
    {{- include "darkroom.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
  annotations:
    # the work of a pod that goes at any time is drawn again in part; Ray's own autoscaler ends pods that are idle
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
spec:
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- if ne .name "head" }}
  automountServiceAccountToken: false
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    runAsGroup: 1000
    fsGroup: 1000
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  terminationGracePeriodSeconds: 120
  containers:
    - name: ray
      image: {{ required "image: name the image of deploy/Dockerfile in your registry" .root.Values.image }}
      securityContext:
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
      env:
        - {name: RAY_worker_niceness, value: "0"}
      {{- if eq .name "front" }}
      envFrom:
        - secretRef: {name: {{ .root.Values.secrets.environment }}}
      {{- end }}
      resources:
        requests: {cpu: {{ .cpu }}, memory: {{ .memory }}}
        limits: {memory: {{ .memory }}{{ if .accelerator }}, nvidia.com/gpu: 1{{ end }}}
      volumeMounts:
        - {name: ray, mountPath: /tmp/ray}
        {{- if and .root.Values.weights.volume (ne .name "head") }}
        - {name: weights, mountPath: /weights}
        {{- end }}
        {{- if eq .name "front" }}
        - {name: keys, mountPath: /etc/darkroom/keys, readOnly: true}
        {{- end }}
  volumes:
    - {name: ray, emptyDir: {}}
    {{- if and .root.Values.weights.volume (ne .name "head") }}
    - name: weights
      persistentVolumeClaim: {claimName: {{ .root.Release.Name }}-weights}
    {{- end }}
    {{- if eq .name "front" }}
    - name: keys
      secret: {secretName: {{ .root.Values.secrets.keys }}}
    {{- end }}
  {{- with .nodeSelector }}
  nodeSelector: {{ toJson . }}
  {{- end }}
  {{- if .accelerator }}
  tolerations:
    - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- if eq .name "front" }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "darkroom.labels" .root | nindent 10 }}
          app.kubernetes.io/component: front
  {{- end }}
{{- end -}}
