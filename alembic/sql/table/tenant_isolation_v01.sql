-- {{table}}: one tenant at a time, for everyone but superusers and BYPASSRLS roles (contract section 10).
-- The permissive policy lets the tenant's rows in. The RESTRICTIVE one says the same, so that a policy added later cannot open the table.
-- Without a tenant the setting is NULL or, after a transaction that set it, ''; no row's tenant_id is ''. A writer without a tenant
-- gets an error that says so.
ALTER TABLE {{table}} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {{table}} FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS tenant_admit ON {{table}};
CREATE POLICY tenant_admit ON {{table}}
AS PERMISSIVE FOR ALL TO PUBLIC
USING (tenant_id = current_setting('selene.tenant_id', TRUE))
WITH CHECK (tenant_id = current_setting('selene.tenant_id', TRUE) OR os_core.no_tenant(tenant_id));

DROP POLICY IF EXISTS tenant_confine ON {{table}};
CREATE POLICY tenant_confine ON {{table}}
AS RESTRICTIVE FOR ALL TO PUBLIC
USING (tenant_id = current_setting('selene.tenant_id', TRUE))
WITH CHECK (tenant_id = current_setting('selene.tenant_id', TRUE) OR os_core.no_tenant(tenant_id));
