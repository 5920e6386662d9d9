"Sources of requests: images, text, JSON, CSV, Parquet and Arrow"
