"""Runners: this machine, Kubeflow and Vertex AI, Airflow."""
