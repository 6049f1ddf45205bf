variable "name" {
  description = "Name of the installation; everything is named after it."
  type        = string
  default     = "dbtcloud"
}

variable "region" {
  description = "Region of AWS."
  type        = string
}

variable "cidr" {
  description = "Network of the VPC, a /16."
  type        = string
  default     = "10.20.0.0/16"
}

variable "kubernetes_version" {
  description = "Version of the cluster."
  type        = string
  default     = "1.33"
}

variable "api_cidrs" {
  description = "Who may reach the cluster's API from outside; nobody by default."
  type        = list(string)
  default     = []
}

variable "nodes" {
  description = "EC2 nodes: those of the control plane, at least two, and those of runs."
  type        = object({ servers = number, runs_most = number, instance_type = string, runs_instance_type = string })
  default     = { servers = 2, runs_most = 10, instance_type = "m7i.large", runs_instance_type = "m7i.xlarge" }
}

variable "database" {
  description = "RDS: class and size in GiB."
  type        = object({ class = string, size = number, most = number })
  default     = { class = "db.m7g.large", size = 50, most = 500 }
}

variable "namespace" {
  description = "Namespace of the chart in the cluster."
  type        = string
  default     = "dbt"
}
