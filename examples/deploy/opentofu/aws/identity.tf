# Identities of pods, by their accounts in the cluster: no key of AWS is kept anywhere.

data "tls_certificate" "cluster" {
  url = aws_eks_cluster.this.identity[0].oidc[0].issuer
}

resource "aws_iam_openid_connect_provider" "cluster" {
  url             = aws_eks_cluster.this.identity[0].oidc[0].issuer
  client_id_list  = ["sts.amazonaws.com"]
  thumbprint_list = [data.tls_certificate.cluster.certificates[0].sha1_fingerprint]
}

locals {
  issuer = replace(aws_eks_cluster.this.identity[0].oidc[0].issuer, "https://", "")
  accounts = {
    servers = [for component in ["app", "scheduler", "cleanup"] : "system:serviceaccount:${var.namespace}:dbtcloud-${component}"]
    runs    = ["system:serviceaccount:${var.namespace}:dbtcloud-runner"]
    ebs     = ["system:serviceaccount:kube-system:ebs-csi-controller-sa"]
    efs     = ["system:serviceaccount:kube-system:efs-csi-controller-sa"]
  }
}

data "aws_iam_policy_document" "pod" {
  for_each = local.accounts
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.cluster.arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = each.value
    }
    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

# `runs` has no right: what a run may do is the warehouse's to say.
resource "aws_iam_role" "pod" {
  for_each           = local.accounts
  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.pod[each.key].json
}

data "aws_iam_policy_document" "bucket" {
  statement {
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.this.arn]
  }
  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = ["${aws_s3_bucket.this.arn}/*"]
  }
}

resource "aws_iam_role_policy" "bucket" {
  name   = "bucket"
  role   = aws_iam_role.pod["servers"].id
  policy = data.aws_iam_policy_document.bucket.json
}

resource "aws_iam_role_policy_attachment" "csi" {
  for_each   = { ebs = "AmazonEBSCSIDriverPolicy", efs = "AmazonEFSCSIDriverPolicy" }
  role       = aws_iam_role.pod[each.key].name
  policy_arn = "arn:aws:iam::aws:policy/service-role/${each.value}"
}
