-- A registration over a certificate waits here until the host shows its new pair: the answer may
-- have been lost, and then the host still has the old one.
ALTER TABLE collectors ADD COLUMN pending_thumbprint TEXT;
ALTER TABLE collectors ADD COLUMN pending_certificate_expires_at INTEGER;
ALTER TABLE collectors ADD COLUMN pending_sealed_secret BLOB;
