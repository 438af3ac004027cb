-- A renewed certificate waits here until it is used for the first time: until then the old one is
-- the registered one.
ALTER TABLE collectors ADD COLUMN next_thumbprint text;
ALTER TABLE collectors ADD COLUMN next_certificate_expires_at timestamptz;
