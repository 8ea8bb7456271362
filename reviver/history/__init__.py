"""The history of a workspace: versions, manifests, patches, the operation log and the lock."""
