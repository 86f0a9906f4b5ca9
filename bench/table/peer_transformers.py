def measure_transformers(folder): return []
