/*
 * roletype.c
 *		Type jobqueue_role, and the identity of the installation.
 *
 * A jobqueue_role is printed like a regrole.  The difference is in reading it:
 * a bare number, which is what a dump shows for a role that had been dropped, is
 * no role at all, not whichever one has that number here.  So is the name of a
 * role that there is not, as one job of such a role would keep a restore from
 * reading all others.
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
	/* once for a name until there is another one */
	static char warned[2 * NAMEDATALEN];
	LOCAL_FCINFO(find, 1);
	char *s = PG_GETARG_CSTRING(0);
	Datum role;

	if (s[0] != '\0' && strspn(s, "0123456789") == strlen(s))
		PG_RETURN_OID(InvalidOid);
	if (strcmp(s, "-") == 0)
		PG_RETURN_OID(InvalidOid);
	InitFunctionCallInfoData(*find, NULL, 1, InvalidOid, NULL, NULL);
	find->args[0].value = CStringGetTextDatum(s);
	find->args[0].isnull = false;
	role = to_regrole(find);
	if (!find->isnull)
		return role;
	if (strncmp(warned, s, sizeof(warned) - 1) != 0)
		ereport(WARNING,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" does not exist; what it owned in jobqueue "
						"is nobody's",
						s),
				 errhint("Roles come before databases in a restore: "
						 "pg_dumpall --roles-only.")));
	strlcpy(warned, s, sizeof(warned));
	PG_RETURN_OID(InvalidOid);
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
