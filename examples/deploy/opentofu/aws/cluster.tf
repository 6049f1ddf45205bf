# EKS with two groups of EC2 nodes, and the add-ons that volumes and balancers need.

data "aws_iam_policy_document" "assume" {
  for_each = toset(["eks.amazonaws.com", "ec2.amazonaws.com"])
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = [each.value]
    }
  }
}

resource "aws_iam_role" "cluster" {
  name               = "${var.name}-cluster"
  assume_role_policy = data.aws_iam_policy_document.assume["eks.amazonaws.com"].json
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonEKSClusterPolicy"
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.assume["ec2.amazonaws.com"].json
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each   = toset(["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryReadOnly"])
  role       = aws_iam_role.node.name
  policy_arn = "arn:aws:iam::aws:policy/${each.value}"
}

resource "aws_eks_cluster" "this" {
  name                      = var.name
  role_arn                  = aws_iam_role.cluster.arn
  version                   = var.kubernetes_version
  enabled_cluster_log_types = ["api", "audit", "authenticator"]
  access_config { authentication_mode = "API" }
  vpc_config {
    subnet_ids              = aws_subnet.private[*].id
    endpoint_private_access = true
    endpoint_public_access  = length(var.api_cidrs) > 0
    public_access_cidrs     = length(var.api_cidrs) > 0 ? var.api_cidrs : null
  }
  depends_on = [aws_iam_role_policy_attachment.cluster]
}

# Node disks are EBS volumes, encrypted; a pod cannot ask the machine for its identity.
resource "aws_launch_template" "node" {
  name_prefix = "${var.name}-"
  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size = 100
      volume_type = "gp3"
      encrypted   = true
    }
  }
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
}

resource "aws_eks_node_group" "servers" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "servers"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = aws_subnet.private[*].id
  instance_types  = [var.nodes.instance_type]
  scaling_config {
    min_size     = var.nodes.servers
    desired_size = var.nodes.servers
    max_size     = var.nodes.servers + 2
  }
  launch_template {
    id      = aws_launch_template.node.id
    version = aws_launch_template.node.latest_version
  }
  depends_on = [aws_iam_role_policy_attachment.node]
}

resource "aws_eks_node_group" "runs" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "runs"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = aws_subnet.private[*].id
  instance_types  = [var.nodes.runs_instance_type]
  labels          = { workload = "dbt" }
  taint {
    key    = "workload"
    value  = "dbt"
    effect = "NO_SCHEDULE"
  }
  # An autoscaler of the cluster's changes how many there are.
  scaling_config {
    min_size     = 1
    desired_size = 1
    max_size     = var.nodes.runs_most
  }
  launch_template {
    id      = aws_launch_template.node.id
    version = aws_launch_template.node.latest_version
  }
  lifecycle { ignore_changes = [scaling_config[0].desired_size] }
  depends_on = [aws_iam_role_policy_attachment.node]
}

resource "aws_eks_addon" "plain" {
  for_each     = toset(["vpc-cni", "coredns", "kube-proxy"])
  cluster_name = aws_eks_cluster.this.name
  addon_name   = each.value
  depends_on   = [aws_eks_node_group.servers]
}

resource "aws_eks_addon" "csi" {
  for_each                 = { aws-ebs-csi-driver = "ebs", aws-efs-csi-driver = "efs" }
  cluster_name             = aws_eks_cluster.this.name
  addon_name               = each.key
  service_account_role_arn = aws_iam_role.pod[each.value].arn
  depends_on               = [aws_eks_node_group.servers]
}
