"""The studies' pictures, each as SVG for the page and PNG for a paper."""
