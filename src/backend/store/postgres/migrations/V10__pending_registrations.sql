-- A registration over a certificate waits here until the host shows its new pair: the answer may
-- have been lost, and then the host still has the old one.
ALTER TABLE collectors ADD COLUMN pending_thumbprint text;
ALTER TABLE collectors ADD COLUMN pending_certificate_expires_at timestamptz;
ALTER TABLE collectors ADD COLUMN pending_sealed_secret bytea;
