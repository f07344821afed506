/*
 * roletype.c
 *		Type jobqueue_role, and the identity of the installation.
 *
 * A jobqueue_role is printed like a regrole.  The difference is in reading it:
 * a bare number, which is what a dump shows for a role that had been dropped, is
 * no role at all, not whichever one has that number here.
 */
#include "postgres.h"

#include "fmgr.h"
#include "jobtable.h"
#include "miscadmin.h"
#include "shmem.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

PG_FUNCTION_INFO_V1(jq_role_in);
Datum
jq_role_in(PG_FUNCTION_ARGS)
{
	char *s = PG_GETARG_CSTRING(0);

	if (s[0] != '\0' && strspn(s, "0123456789") == strlen(s))
		PG_RETURN_OID(InvalidOid);
	return DirectFunctionCall1(regrolein, CStringGetDatum(s));
}

PG_FUNCTION_INFO_V1(jq_role_out);
Datum
jq_role_out(PG_FUNCTION_ARGS)
{
	return DirectFunctionCall1(regroleout, PG_GETARG_DATUM(0));
}

/* is this the database that the identity was made for? */
PG_FUNCTION_INFO_V1(jq_at_home);
Datum
jq_at_home(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_BOOL(jq_table_required()->meta_database == MyDatabaseId);
}

PG_FUNCTION_INFO_V1(jq_home);
Datum
jq_home(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_INT64(jq_table_required()->home);
}
