"""What every gRPC server here shares: lifecycle, errors, interceptors, settings."""
