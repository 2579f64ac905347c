"""Dashboards as code, the JSON that it makes, rules, provisioning, and a page that draws dashboards without Grafana."""
