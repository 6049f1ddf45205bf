output "kubeconfig" {
  description = "Makes kubectl and helm reach the cluster."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${aws_eks_cluster.this.name}"
}

output "database_password" {
  description = "Goes into the secret dbtcloud-database, key password."
  value       = random_password.database.result
  sensitive   = true
}

output "egress_addresses" {
  description = "Where runs come from: for allow-lists of warehouses and git servers."
  value       = aws_eip.nat[*].public_ip
}

output "file_system" {
  description = "For the storage class efs: provisioner efs.csi.aws.com, provisioningMode efs-ap."
  value       = aws_efs_file_system.this.id
}

# helm install dbtcloud examples/deploy/helm --values <(tofu output -raw values)
output "values" {
  description = "Values of the chart for this infrastructure."
  value = yamlencode({
    externalDatabase = {
      host           = aws_db_instance.this.address
      existingSecret = "dbtcloud-database"
      caSecret       = "dbtcloud-database-ca"
    }
    objectStorage = { bucket = aws_s3_bucket.this.bucket, region = var.region }
    postgresql    = { enabled = false }
    seaweedfs     = { enabled = false }
    podNetworks   = [var.cidr]
    app           = { serviceAccount = { annotations = { "eks.amazonaws.com/role-arn" = aws_iam_role.pod["servers"].arn } } }
    scheduler     = { serviceAccount = { annotations = { "eks.amazonaws.com/role-arn" = aws_iam_role.pod["servers"].arn } } }
    cleanup       = { serviceAccount = { annotations = { "eks.amazonaws.com/role-arn" = aws_iam_role.pod["servers"].arn } } }
    gateway = {
      service = {
        type = "LoadBalancer"
        annotations = {
          "service.beta.kubernetes.io/aws-load-balancer-scheme" = "internal"
          "service.beta.kubernetes.io/aws-load-balancer-type"   = "nlb"
        }
      }
    }
    runner = {
      storageClass   = "efs"
      nodeSelector   = { workload = "dbt" }
      tolerations    = [{ key = "workload", value = "dbt", effect = "NoSchedule" }]
      serviceAccount = { annotations = { "eks.amazonaws.com/role-arn" = aws_iam_role.pod["runs"].arn } }
    }
  })
}
