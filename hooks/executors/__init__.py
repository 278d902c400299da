"""How a plan is carried out, bucket by bucket: natively, by rings, by trees."""
