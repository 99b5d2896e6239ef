"""Every public loss against every obligation of the contract."""
